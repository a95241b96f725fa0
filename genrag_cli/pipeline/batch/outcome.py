"""How a batch is run, what became of each slide, and whether an output is done, told without opening the slide."""

import datetime
import os
from dataclasses import dataclass
from pathlib import Path

from genrag_cli.errors import GeneragError, SlideError
from genrag_cli.pipeline.batch.inputs import Job
from genrag_cli.pipeline.batch.staging import remote_stamp
from genrag_cli.stores.claims import LEASE_S
from genrag_cli.stores.seal import recorded_digest
from genrag_cli.stores.status import FINISHED, SlideStatus, output_size, read_status, source_stamp, status_path


@dataclass(frozen=True)
class BatchOptions:
    """How a batch is run; none of it changes a result."""

    overwrite: bool = False
    dry_run: bool = False
    wait: bool = True
    """For slides that other workers hold."""
    lease_s: float = LEASE_S
    stage: Path | None = None
    """Folder on local disk that slides are copied to."""
    overlay: bool = True
    """Write a picture of tissue and spots, and the contours of the tissue, for each slide."""
    overlap: bool = False
    """Embed the next slide too while the current one is solved and written, not just read it: for devices that this
    leaves idle; on CPUs both would only slow each other."""
    debug: bool = False
    """Let unexpected errors through."""


@dataclass
class Outcome:
    """What became of one job in this run."""

    job: Job
    target: Path
    status: SlideStatus
    skipped: bool = False
    """Nothing was to be done: it stood already, another worker has it, or a dry run."""
    error: GeneragError | None = None
    held_by: str = ""
    """The worker that had it when this one ended."""


def status_of(target: Path, kind: str) -> Path:
    """Where a command keeps the status of an output."""
    return status_path(target, ".embed" if kind == "embed" else "")


def find_mark(job: Job, target: Path, kind: str, options: str) -> SlideStatus | None:
    """The mark of an output that is done in just this way; None where the slide has to be looked at to know.

    Args:
        job: the slide.
        target: the output.
        kind: the command.
        options: fingerprint of everything but the slide.
    """
    status = read_status(status_of(target, kind))
    if status is None or status.state not in FINISHED or status.options != options:
        return None
    if not job.slide or not status.source or not stands(target, status):
        return None
    try:
        now = remote_stamp(job.slide) if job.is_remote else source_stamp(job.path)
    except (OSError, SlideError):
        return None
    return status if now == status.source else None


def stands(target: Path, status: SlideStatus) -> bool:
    """Whether an output is there, under the name, in the size and with the digest (unchecked) that its status says."""
    alike = target.name == status.output and target.exists() and output_size(target) == status.size > 0
    return alike and recorded_digest(target) == status.sha256


def begin_status(job: Job, target: Path, kind: str, options: str, before: SlideStatus | None) -> SlideStatus:
    """The status of a slide that is begun; arguments as `find_mark`, and the status so far."""
    before = before or SlideStatus("failed", job.slide, target.name)
    return SlideStatus(
        state="running", slide=job.slide, output=target.name, command=kind, options=options, size=before.size,
        sha256=before.sha256, attempts=before.attempts + 1, began=time_now(),
        worker=f"{os.uname().nodename}:{os.getpid()}",
    )  # fmt: skip


def time_now() -> str:
    """ISO 8601, for people; nothing is decided by it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
