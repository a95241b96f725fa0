"""What a command that works on slides tells the batch: names, fingerprints, and the two halves of the work."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from genrag_cli.pipeline.batch.inputs import Job
from genrag_cli.pipeline.lay_out import LaidOut
from genrag_cli.types import Listener, TileGrid, fingerprint


@dataclass(frozen=True)
class Finished:
    """A result that stands."""

    n_spots: int
    n_bad_tiles: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    """What else is to be known, for status and `--json`."""


class Begun(Protocol):
    """A slide that is open, laid out, and being read."""

    @property
    def laid(self) -> LaidOut | None:
        """None where there are no pixels."""

    @property
    def grid(self) -> TileGrid:
        """The spots."""

    @property
    def close(self) -> Any:
        """Closes the slide; closing again does nothing."""

    @property
    def advance(self) -> Any:
        """Does what needs nothing but the slide and the backbone, so that less is left to finish."""


B = TypeVar("B", bound=Begun)


class Work(Protocol[B]):
    """A command, for any slide."""

    @property
    def kind(self) -> str:
        """The command's name."""

    def target(self, job: Job) -> Path:
        """The file that a job's result goes to."""

    def options_key(self, job: Job) -> str:
        """Fingerprint of everything but the slide."""

    def digest(self, source: Path | None) -> str:
        """Identity of the slide, or of what is in its place."""

    def find_done(self, target: Path, key: str, listener: Listener) -> Finished | None:
        """What an output without a mark says, where it was made in just this way."""

    def begin(self, job: Job, source: Path | None, listener: Listener) -> B:
        """Opens a slide, lays it out and begins to read it; may run while another slide is finished."""

    def plan(self, begun: B, target: Path) -> str:
        """What would be written, in words."""

    def finish(self, begun: B, job: Job, target: Path, key: str, listener: Listener) -> Finished:
        """Makes the result."""

    def describe(self, job: Job, target: Path, done: Finished, seconds: dict[str, float], listener: Listener) -> None:
        """Says what became of a slide."""


def do_one(work: Work[B], slide: Path, listener: Listener) -> tuple[Path, Finished]:
    """Works on one slide, with nothing beside it: no claim, no status."""
    job = Job(str(slide), slide.name if slide.is_dir() else slide.stem)
    target = work.target(job)
    key = fingerprint(work.digest(slide), work.options_key(job))
    if target.exists() and (done := work.find_done(target, key, listener)) is not None:
        return target, done
    begun = work.begin(job, slide, listener)
    try:
        return target, work.finish(begun, job, target, key, listener)
    finally:
        begun.close()
