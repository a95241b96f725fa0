"""A command whose slides are text files, for tests of a batch."""

import json
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from genrag_cli import stopping
from genrag_cli.errors import OutputError, SlideError, UsageError
from genrag_cli.pipeline.batch.inputs import Job
from genrag_cli.pipeline.batch.outcome import BatchOptions
from genrag_cli.pipeline.batch.report import state_of
from genrag_cli.pipeline.batch.run import Batch
from genrag_cli.pipeline.batch.work import Finished
from genrag_cli.stores.atomic import digest_file
from genrag_cli.stores.status import read_status
from genrag_cli.types import Listener


@dataclass
class Text:
    """A slide that is a text; open until it is closed."""

    job: Job
    open: set
    laid: None = None

    def __post_init__(self):
        self.open.add(self.job.name)

    @property
    def grid(self):
        return np.zeros(len(self.job.path.read_text()))

    def close(self):
        self.open.discard(self.job.name)


class Outcomes(dict):
    """Outcomes of a run by the names of their slides."""

    def __init__(self, outcomes):
        super().__init__((o.job.name, o) for o in outcomes)

    @property
    def states(self):
        """States by name."""
        return {name: state_of(o) for name, o in self.items()}


@dataclass
class Shout:
    """Writes texts in capitals; `at[name, "begin" or "finish"]` is called with the job at that moment."""

    out: Path
    options: str = ""
    at: dict = field(default_factory=dict)
    did: list = field(default_factory=list)
    open: set = field(default_factory=set)
    kind: str = "retrieve"
    before: set = field(default_factory=lambda: set(threading.enumerate()))

    def _now(self, job, what):
        self.did.append((what, job.name))
        self.at.get((job.name, what), lambda _: None)(job)

    def target(self, job):
        if job.name == "refused":
            raise UsageError("--mpp and --mpp", "Give one.")
        return job.out or self.out / f"{job.name}.h5ad"

    def options_key(self, job):
        return f"options {self.options}"

    def digest(self, source):
        if not source.exists():
            raise SlideError(f"{source}: no such slide", "Check.")
        return digest_file(source)

    def find_done(self, target, key, listener):
        try:
            about = json.loads(target.read_text())
        except ValueError as error:
            raise OutputError(f"{target} is not ours", "Give another --out.") from error
        return Finished(about["n"]) if about["key"] == key else None

    def begin(self, job, source, listener):
        self._now(job, "begin")
        return Text(job, self.open)

    def plan(self, begun, target):
        return f"would write {target}"

    def finish(self, begun, job, target, key, listener):
        stopping.check()
        assert begun.job is job
        assert job.name in self.open
        self._now(job, "finish")
        text = job.path.read_text()
        target.write_text(json.dumps({"key": key, "n": len(text), "text": text.upper()}))
        return Finished(len(text), facts={"shouted": True})

    def describe(self, job, target, done, seconds, listener):
        listener.say(f"{target}: {done.n_spots}")

    # What tests ask for.

    def run(self, jobs, listener=None, failed=lambda _: None, **options):
        """Runs a batch of this work; outcomes by name."""
        more = {"lease_s": 60.0, **options}
        return Outcomes(Batch(self, BatchOptions(overlay=False, **more), listener or Listener(), failed).run(jobs))

    def fail(self, name, when, error):
        """Has a slide raise at that moment."""

        def now(_job):
            raise error

        self.at[name, when] = now

    def status(self, name):
        """What stands beside the output."""
        return read_status(self.out / f"{name}.status.json")

    def another(self):
        """The same work, done by somebody else."""
        return Shout(self.out)

    def expect_tidy(self):
        """Asserts that there is no claim, no temporary file, nothing open, and no thread."""
        assert [p.name for p in self.out.rglob(".*")] == []
        assert self.open == set()
        begun = set(threading.enumerate()) - self.before
        assert not [thread for thread in begun if thread.name.startswith(("ahead", "claim"))]


class Events(Listener):
    """Keeps events."""

    def __init__(self):
        super().__init__()
        self.events = []

    def event(self, name, /, **facts):
        self.events.append((name, facts))


@pytest.fixture(autouse=True)
def _unasked():
    yield
    stopping._asked.clear()


@pytest.fixture
def work(tmp_path):
    return Shout(tmp_path / "out")


@pytest.fixture
def jobs(tmp_path):
    for name in "abcd":
        (tmp_path / f"{name}.svs").write_text(f"text of {name}")
    return [Job(str(tmp_path / f"{name}.svs"), name) for name in "abcd"]


@pytest.fixture
def listener():
    """Keeps messages and events."""
    return Events()
