"""`generag embed`: slide -> grid -> tiles -> embeddings, for one slide of a batch."""

import functools
from dataclasses import dataclass
from pathlib import Path

from genrag_cli.backbones.base import Backbone
from genrag_cli.pipeline.batch.inputs import Job
from genrag_cli.pipeline.batch.work import Finished
from genrag_cli.pipeline.embedding import SlideEmbeddings, embeddings_path
from genrag_cli.pipeline.fit import identity
from genrag_cli.pipeline.geometry import Geometry
from genrag_cli.pipeline.lay_out import LaidOut, lay_out
from genrag_cli.pipeline.options import RunOptions, SlideOptions
from genrag_cli.pipeline.slide_options import digest_of_options, digest_of_slide
from genrag_cli.types import Listener, TileGrid, fingerprint

ENDING = ".zarr.zip"


@dataclass(frozen=True, eq=False)
class BegunEmbedding:
    """A slide whose embeddings are being made."""

    laid: LaidOut
    embeddings: SlideEmbeddings | None
    """None in a dry run."""

    @property
    def grid(self) -> TileGrid:
        """The spots."""
        return self.laid.grid

    def advance(self) -> None:
        """Embeds the spots."""
        if self.embeddings is not None:
            self.embeddings.advance()

    def close(self) -> None:
        """Ends the reading and closes the slide."""
        if self.embeddings is not None:
            self.embeddings.end()
        self.laid.close()


@dataclass(frozen=True, eq=False)
class Embedding:
    """`generag embed`: everything but the slide."""

    backbone: Backbone
    out: Path
    """Folder, or the file to write (ends in .zarr.zip)."""
    slide_options: SlideOptions
    geometry: Geometry | None
    """Of the bank, for what the options leave open; None where there is no bank."""
    run: RunOptions
    kind: str = "embed"

    @functools.cached_property
    def _constant(self) -> str:
        card = self.backbone.card
        return fingerprint(identity(card), card.fov_um, dict(self.geometry or {}))

    def target(self, job: Job) -> Path:
        """The file that a job's embeddings go to."""
        out = job.out or self.out
        kind = "spots" if job.settle(self.slide_options).spots else ""
        return out if out.name.endswith(ENDING) else embeddings_path(out, job.name, self.backbone.card.name, kind)

    def options_key(self, job: Job) -> str:
        """Fingerprint of everything but the slide."""
        return fingerprint(self._constant, digest_of_options(job.settle(self.slide_options)))

    def digest(self, source: Path | None) -> str:
        """Of the slide."""
        assert source is not None
        return digest_of_slide(source)

    def find_done(self, target: Path, key: str, listener: Listener) -> Finished | None:  # noqa: ARG002
        """None: whether the file holds the very same shows once the slide is laid out."""
        return None

    def begin(self, job: Job, source: Path | None, listener: Listener) -> BegunEmbedding:
        """Opens a slide, plans its spots and begins to read them; close what is returned.

        Raises:
            SlideError: for a slide that cannot be read.
            OutputError: where the target is a file that is not ours.
        """
        assert source is not None
        options, card = job.settle(self.slide_options), self.backbone.card
        laid = lay_out(source, options, self.geometry, card.fov_um, card.tile_px, listener)
        if self.run.dry_run:
            return BegunEmbedding(laid, None)
        try:
            embeddings = SlideEmbeddings(
                laid.slide, laid.digest, laid.grid, self.backbone, self.target(job), self.run,
                options.bad_allowed(len(laid.grid)), listener,
            )  # fmt: skip
            embeddings.begin()
        except BaseException:
            laid.close()
            raise
        return BegunEmbedding(laid, embeddings)

    def plan(self, begun: BegunEmbedding, target: Path) -> str:
        """What would be written, in words."""
        return f"would write {target}: {len(begun.grid)} spots"

    def finish(self, begun: BegunEmbedding, job: Job, target: Path, key: str, listener: Listener) -> Finished:  # noqa: ARG002
        """Embeds the spots and writes them.

        Raises:
            SlideError: where too many tiles cannot be read, or the slide is no longer what it was.
        """
        assert begun.embeddings is not None
        made = begun.embeddings.finish(begun.laid.expect_unchanged)
        return Finished(len(made.grid), len(begun.embeddings.bad))

    def describe(
        self,
        job: Job,  # noqa: ARG002
        target: Path,
        done: Finished,
        seconds: dict[str, float],  # noqa: ARG002
        listener: Listener,
    ) -> None:
        """Says what became of a slide."""
        listener.say(f"{target}: {done.n_spots} spots embedded")
