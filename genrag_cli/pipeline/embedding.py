"""Embeddings of a grid, block by block, each block kept so that a killed run goes on where it was.

Knows parts, their order, tiles that cannot be read, and the file that comes of it. Does not open slides or plan grids.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from genrag_cli import stopping
from genrag_cli.backbones.base import Backbone
from genrag_cli.errors import SlideError
from genrag_cli.pipeline.feed import ahead_of, encode_blocks
from genrag_cli.pipeline.fit import identity
from genrag_cli.pipeline.options import RunOptions
from genrag_cli.slides import RemoteSlide, Slide, TileStream, n_beyond_edge, reading_order
from genrag_cli.stores.atomic import Parts, tidy
from genrag_cli.stores.embeddings import read_about, read_embeddings, write_embeddings
from genrag_cli.stores.layout import file_word
from genrag_cli.types import Embeddings, Floats, Ints, Listener, Progress, TileGrid, fingerprint

BLOCK = 256
"""Tiles between two checkpoints; fixed, so that a resumed run computes the very same batches."""
BATCH = 32
READING = "in reading order, 1"
"""Of the parts of an unfinished file: which rows are in which part."""


def embed_blocks(
    slide: Slide, grid: TileGrid, backbone: Backbone, parts: Parts, run: RunOptions, listener: Listener, stage: str
) -> Iterator[Floats]:
    """Yields (b, d) embeddings of consecutive rows of the grid; finished parts are read instead of computed.

    All is computed before the first block is given: whoever takes blocks may stop, and nothing is left reading.

    Raises:
        SlideError: for the first tile that cannot be read.
    """
    making = _Making(slide, grid, backbone, parts, run, np.arange(len(grid)), None)
    making.compute(listener, stage)
    for number in range(len(making.blocks)):
        yield parts.read(number)["values"]


@dataclass(eq=False)
class _Making:
    """Embeddings of a grid in parts: what is there, what is missing, and what is being read already."""

    slide: Slide
    grid: TileGrid
    backbone: Backbone
    parts: Parts
    run: RunOptions
    order: Ints
    """In which the rows are read."""
    n_bad_allowed: int | None
    """Tiles that may be missing; None where nobody can allow any."""
    begun: TileStream | None = None
    bad: dict[int, str] = field(default_factory=dict)
    """Rows that could not be read, and why."""

    def __post_init__(self) -> None:
        self.blocks = [self.order[low : low + BLOCK] for low in range(0, len(self.order), BLOCK)]
        # Of which a GPU takes as many at a time as fit.
        self.batch = BATCH if self.run.device == "cpu" else BLOCK

    @property
    def missing(self) -> list[int]:
        """Numbers of the blocks that are not done."""
        return [number for number in range(len(self.blocks)) if not self.parts.has(number)]

    def begin(self) -> None:
        """Begins to read ahead what is missing."""
        wanted = [self.blocks[number] for number in self.missing]
        if wanted and isinstance(self.slide, RemoteSlide):
            self.begun = self.slide.begin_tiles(
                self.grid, np.concatenate(wanted), self.batch, self.run.workers, ahead_of(self.batch)
            )

    def compute(self, listener: Listener, stage: str) -> None:
        """Reads and encodes what is missing.

        Raises:
            SlideError: for a tile that cannot be read, where that is one too many.
            Stopped: after a block, where that was asked for.
        """
        missing, n = self.missing, len(self.order)
        n_there = n - sum(len(self.blocks[number]) for number in missing)
        for number in set(range(len(self.blocks))) - set(missing):
            part = self.parts.read(number)
            self.bad |= dict(zip(part["bad"].tolist(), part["why"].tolist(), strict=True)) if "bad" in part else {}
        fresh = encode_blocks(
            self.slide, self.grid, self.backbone, [self.blocks[number] for number in missing],
            batch=self.batch, workers=self.run.workers, bursts=self.run.device == "cpu", begun=self.begun,
            told=lambda done: listener.progress(Progress(stage, n_there + done, n)), bad=self.bad, listener=listener,
        )  # fmt: skip
        with closing(fresh):
            for number in missing:
                values = next(fresh)
                self._expect_few_bad()
                block = self.blocks[number]
                bad = [row for row in block.tolist() if row in self.bad]
                about = {"bad": np.array(bad, np.int64), "why": np.array([self.bad[row] for row in bad], np.str_)}
                self.parts.write(number, values=values, **(about if bad else {}))
                stopping.check()
        listener.progress(Progress(stage, n, n))

    def gather(self) -> Floats:
        """(n, d) values in the order of the grid."""
        out = np.empty((len(self.order), self.backbone.card.dim), np.float32)
        for number, block in enumerate(self.blocks):
            out[block] = self.parts.read(number)["values"]
        return out

    def end(self) -> None:
        """Ends what is being read."""
        if self.begun is not None:
            self.begun.end()
            self.begun = None

    def _expect_few_bad(self) -> None:
        if len(self.bad) > (self.n_bad_allowed or 0):
            row, why = next(iter(self.bad.items()))
            hint = "The file is damaged or incomplete; copy it again."
            if self.n_bad_allowed is not None:
                why = f"{len(self.bad)} of {len(self.grid)} tiles cannot be read, first {self.grid.names[row]}: {why}"
                hint += " --max-bad-tiles says how many may be missing."
            raise SlideError(why, hint)


class SlideEmbeddings:
    """The embeddings of a slide's grid: taken from `path` where it holds the very same, else made and written there.

    Args:
        slide: open.
        digest: of the slide.
        grid: of the slide.
        backbone: loaded.
        path: of the file.
        run: device, workers, overwrite.
        n_bad_allowed: tiles that may be missing.
        listener: told what happens.

    Raises:
        OutputError: where `path` is not a file of generag and `--overwrite` was not given.
    """

    def __init__(
        self, slide: Slide, digest: str, grid: TileGrid, backbone: Backbone, path: Path, run: RunOptions,
        n_bad_allowed: int, listener: Listener,
    ) -> None:  # fmt: skip
        self.path, self.listener, self.digest = path, listener, digest
        self.key = fingerprint(digest, grid, identity(backbone.card))
        self.done = False
        if path.exists() and not run.overwrite:
            about = read_about(path)
            self.done = about["key"] == self.key and len(about.get("bad_tiles", {})) <= n_bad_allowed
            if not self.done:
                listener.say(f"{path}: made with other options or from another slide; doing it again")
        parts = Parts(path, fingerprint(self.key, READING), "parts")
        self._stage = f"embed {slide.slide_id}"
        self.making = _Making(slide, grid, backbone, parts, run, reading_order(slide, grid), n_bad_allowed)

    @property
    def bad(self) -> dict[str, str]:
        """Spots that are left out because their tiles cannot be read, and why."""
        if self.done:
            return {str(k): str(v) for k, v in read_about(self.path).get("bad_tiles", {}).items()}
        return {str(self.making.grid.names[row]): why for row, why in sorted(self.making.bad.items())}

    def begin(self) -> None:
        """Begins to read tiles, if any are to be read."""
        if not self.done:
            self.making.begin()

    def advance(self) -> None:
        """Reads and encodes, so that little is left for `finish`; raises as that does."""
        if not self.done:
            self.making.compute(self.listener, self._stage)

    def finish(self, expect_unchanged: Callable[[], None] = lambda: None) -> Embeddings:
        """The embeddings; their grid lacks the spots whose tiles could not be read.

        Args:
            expect_unchanged: called before the file is written; may refuse.

        Raises:
            SlideError: where more tiles cannot be read than may be missing.
        """
        listener, making = self.listener, self.making
        slide, grid = making.slide, making.grid
        if self.done:
            listener.say(f"{self.path}: {len(grid)} embeddings, already there")
            tidy(self.path)
            there = read_embeddings(self.path)
            rows = {name: row for row, name in enumerate(grid.names.tolist())}
            kept = np.array([rows[name] for name in there.grid.names.tolist()], np.int64)
            return Embeddings(there.values, grid.rows(kept), there.card)
        beyond = n_beyond_edge(slide, grid)
        if beyond:
            listener.say(f"{slide.slide_id}: {beyond} tiles reach past the edge of the slide; white there")
        try:
            making.compute(listener, self._stage)
        finally:
            making.end()
        kept = np.array([row for row in range(len(grid)) if row not in making.bad], np.int64)
        if bad := self.bad:
            listener.warn(
                f"{slide.slide_id}: {len(bad)} of {len(grid)} tiles cannot be read and are left out, first "
                f"{next(iter(bad))}: {next(iter(bad.values()))}"
            )
        extra: dict[str, Any] = {
            "slide": slide.path.name, "slide_digest": self.digest, "reader": slide.reader, "tiles_beyond_edge": beyond,
            "bad_tiles": bad,
        }  # fmt: skip
        expect_unchanged()
        values, card = making.gather()[kept], making.backbone.card
        with listener.timed("write"):
            write_embeddings(self.path, grid.rows(kept), card, iter([values]), key=self.key, extra=extra)
        making.parts.clear()
        return Embeddings(values, grid.rows(kept), card)

    def end(self) -> None:
        """Ends what is being read."""
        self.making.end()


def embeddings_path(out: Path, slide_id: str, backbone: str, kind: str = "") -> Path:
    """Where a slide's embeddings stand: `SLIDE.BACKBONE.zarr.zip`, with `spots` or `sample` before the ending."""
    return out / f"{slide_id}.{file_word(backbone)}{'.' + kind if kind else ''}.zarr.zip"
