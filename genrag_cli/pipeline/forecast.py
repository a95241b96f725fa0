"""What a slide will cost: a few of its own tiles and queries timed, all of them extrapolated; memory and disk by size.

Knows rates, sizes and the arithmetic between them. Does not know how a file is written nor how long the disk itself
takes for it, and times nothing that it does not say.
"""

import contextlib
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genrag_cli.backbones.base import Backbone
from genrag_cli.pipeline.bank_rows import BYTES_EACH
from genrag_cli.pipeline.feed import AHEAD
from genrag_cli.pipeline.guess import first_guess
from genrag_cli.pipeline.loading import Loaded, record
from genrag_cli.pipeline.options import RunOptions, SolveOptions
from genrag_cli.pipeline.query import Embedded, Query
from genrag_cli.pipeline.query_space import SEARCH_QUERIES, QuerySpace, bank_blocks
from genrag_cli.reconstruction import BLOCK_VALUES, KEEP_VALUES, reconstruct, rows_of_a_block
from genrag_cli.retrieval.memory import chunk_bytes
from genrag_cli.slides import Slide, read_tiles, reading_order
from genrag_cli.stores.bank import Bank
from genrag_cli.types import Floats, Ints, Listener, SparseCodes, TileBatch, TileGrid

RUN = 8
"""Neighbouring tiles that are read one after the other, as a whole slide is read."""
RUNS = 6
ENOUGH_S = 2.0
"""Seconds after which no further tiles are read or encoded for a forecast, and no more queries are solved."""
MOST_QUERIES = 256
OVERVIEW_BYTES = 96
"""Per px of an overview while tissue is looked for: colours, densities and masks in float32."""
READER_BYTES = 384 << 20
"""Decoded pieces of the slide that its reader keeps at most."""
SPOT_BYTES = 260
"""Of a spot in a prediction beside expression, weights and first guess: its name, place and some twenty columns."""
EMBEDDED_SPOT_BYTES = 60
"""Of a spot in a file of embeddings beside them."""
REFERENCE_BYTES = 8
"""Of a weight on disk: its column and its value."""
BANK_SPOT_BYTES = 40
"""Of a bank spot's name in a prediction."""
FILE_BYTES = 1 << 18
"""Of a prediction whatever is in it."""


@dataclass(frozen=True)
class Sizes:
    """Everything that memory and disk depend on; numbers of a bank are 0 where there is none."""

    spots: int
    """n"""
    dim: int
    """d"""
    tile_px: int
    overview_px: int
    """Pixels of the overview on which tissue was looked for."""
    resident: int
    """Bytes that this process holds with the backbone loaded and no bank yet, and the one that decodes."""
    bank_spots: int = 0
    """N"""
    anchors: int = 0
    """A"""
    genes: int = 0
    """G that are written."""
    references: float = 0.0
    """Mean number of references of a spot."""
    sections: int = 0
    chunk: int = 0
    """Bytes that the solver takes for the queries that it solves side by side."""
    thumbnail_px: int = 0

    @property
    def memory(self) -> int:
        """Bytes at the peak: what is there before, the bank, and the largest of four stages.

        resident + 6 N (d + A) + max(tissue, embed, solve, write), where
        tissue = 96 overview px;
        embed = 384 MiB of the reader + 3 tile_px^2 x 192 tiles on their way + 4 n d;
        solve = 4 n (3 d + 2 A) + the solver's chunk;
        write = 4 n A + 24 n references + 24 x min(8 M, n G) + 8 x min(32 M, N G).
        """
        tiles = 3 * self.tile_px**2 * (AHEAD + 64)
        out = 24 * min(BLOCK_VALUES, self.spots * self.genes) + 8 * min(KEEP_VALUES, self.bank_spots * self.genes)
        stages = (
            OVERVIEW_BYTES * self.overview_px,
            READER_BYTES + tiles + 4 * self.spots * self.dim,
            4 * self.spots * (3 * self.dim + 2 * self.anchors) + self.chunk,
            4 * self.spots * self.anchors + round(24 * self.spots * self.references) + out,
        )
        return self.resident + BYTES_EACH * self.bank_spots * (self.dim + self.anchors) + max(stages)

    @property
    def embeddings(self) -> int:
        """Bytes of the file of embeddings: n (4 d + 60)."""
        return self.spots * (4 * self.dim + EMBEDDED_SPOT_BYTES)

    @property
    def prediction(self) -> int:
        """Bytes of the prediction: n (4 G + 4 A + 8 (references + shares) + 260) + 40 N + thumbnail + 256 KiB.

        Shares by section and by patient take as many numbers as there are sections, or references where those are
        fewer, each.
        """
        if not self.bank_spots:
            return 0
        shares = 2 * min(self.sections, self.references)
        each = 4 * (self.genes + self.anchors) + REFERENCE_BYTES * (self.references + shares) + SPOT_BYTES
        return round(self.spots * each) + BANK_SPOT_BYTES * self.bank_spots + 3 * self.thumbnail_px + FILE_BYTES

    @property
    def scratch(self) -> int:
        """Bytes of parts that a run keeps until its output stands: embeddings once more, and 12 a reference."""
        return 4 * self.spots * self.dim + round(12 * self.spots * self.references)


@dataclass(frozen=True)
class Forecast:
    """Seconds by stage, bytes, and what they were extrapolated from."""

    seconds: dict[str, float]
    """`tissue` as it took; `read`, `encode`, `guess`, `search`, `solve`, `reconstruct` for all spots."""
    overlap: bool
    """Whether reading and encoding go on at the same time (a GPU encodes), so that only the longer one counts."""
    memory_bytes: int
    disk_bytes: dict[str, int]
    """`embeddings`, `prediction`, and `scratch` while the run goes on."""
    measured: dict[str, int]
    """`tiles` read, `encoded`, and `queries` solved."""
    left_out: tuple[str, ...] = ()
    """What is not in the numbers."""

    @property
    def total_s(self) -> float:
        """Seconds of the whole slide."""
        lost = min(self.seconds.get("read", 0.0), self.seconds.get("encode", 0.0)) if self.overlap else 0.0
        return sum(self.seconds.values()) - lost


@dataclass(frozen=True, eq=False)
class TileRates:
    """A few tiles of a slide, timed."""

    rows: Ints
    """(k,) of the grid that were encoded, or read where there is no backbone."""
    read_s: float
    """Seconds a tile."""
    encode_s: float | None
    """Seconds a tile; None without a backbone."""
    embeddings: Floats | None
    """(k, d)"""
    n_read: int
    n_bad: int
    """Of these, tiles that cannot be read."""


@dataclass(frozen=True)
class SolveRates:
    """A few queries of a slide, timed; seconds of one spot but for `search_s` and `walk_s`."""

    queries: int
    guess_s: float
    search_s: float
    """Of the search for the strength on as many spots as a whole slide gives it; 0 where it is named."""
    solve_s: float
    walk_s: float
    """Of one walk over the bank's counts while expression is put together."""
    reconstruct_s: float
    references: float


def sample_runs(n: int) -> Ints:
    """Runs of neighbouring places, spread evenly over n places; all of them where there are no more than that."""
    if n <= RUN * RUNS:
        return np.arange(n, dtype=np.int64)
    starts = np.linspace(0, n - RUN, RUNS).astype(np.int64)
    # The middle first: a rim alone would stand for the slide where time is short.
    order = sorted(range(RUNS), key=lambda i: abs(i - (RUNS - 1) / 2))
    return np.concatenate([np.arange(starts[i], starts[i] + RUN) for i in order])


def measure_tiles(slide: Slide, grid: TileGrid, backbone: Backbone | None, workers: int) -> TileRates:
    """Reads and encodes a few tiles of a grid that is not empty; about twice `ENOUGH_S`, and a batch more.

    Raises:
        SlideError: where the slide can no longer be read at all.
    """
    wanted = reading_order(slide, grid)[sample_runs(len(grid))]
    began, batches = time.perf_counter(), []
    with contextlib.closing(read_tiles(slide, grid, wanted, batch=RUN, workers=workers)) as reading:
        for batch in reading:
            batches.append(batch)
            if time.perf_counter() - began > ENOUGH_S:
                break
    rows = np.concatenate([b.rows for b in batches])
    n_read, n_bad = len(rows), sum(len(b.bad) for b in batches)
    read_s = (time.perf_counter() - began) / n_read
    if backbone is None:
        return TileRates(rows, read_s, None, None, n_read, n_bad)
    backbone.encode(batches[0].pixels[:1])  # the first call of a network makes things that the others find
    began, encoded = time.perf_counter(), []
    for batch in batches:
        encoded.append(backbone.encode(batch.pixels))
        if time.perf_counter() - began > ENOUGH_S:
            break
    values = np.concatenate(encoded)
    encode_s = (time.perf_counter() - began) / len(values)
    return TileRates(rows[: len(values)], read_s, encode_s, values, n_read, n_bad)


def measure_queries(
    slide: Slide, grid: TileGrid, rates: TileRates, bank: Bank, space: QuerySpace, loaded: Loaded, chosen: Ints,
    run: RunOptions, listener: Listener,
) -> SolveRates:  # fmt: skip
    """Takes the embeddings of a few tiles all the way to expression that is thrown away.

    Queries between those of the tiles are solved beside them, so that as many go side by side as on a slide.

    Args:
        slide: open, for models that look at tiles again.
        grid: of the whole slide.
        rates: with embeddings.
        bank: opened.
        space: of the bank, at the settings that retrieve takes by itself.
        loaded: the backbone.
        chosen: (G,) genes that would be written.
        run: workers, seed.
        listener: told what the first guess has to say.
    """
    assert rates.embeddings is not None
    query = _few(slide, grid.rows(rates.rows), loaded, run)
    statistics = space.statistics(rates.embeddings, "tissue tiles")
    with _timed() as guessing, tempfile.TemporaryDirectory(prefix="generag-") as folder:
        y_init, _ = first_guess(
            query, rates.embeddings, statistics, space, bank, backbone=loaded.backbone, foreign=None, taken=None,
            target=Path(folder) / "forecast", seed=run.seed, listener=listener,
        )  # fmt: skip
    ready, _ = space.features(rates.embeddings, statistics, query.grid)
    queries = space.queries(ready, y_init)
    k, asked = len(queries), SolveOptions()
    space.solver.find_strength(queries[:2].T, active=1, nonnegative=True, l1_ratio=0.9)  # compiles what is compiled
    with _timed() as searching:
        rule, found = space.strength(asked, queries, run.seed)
    searched = min(SEARCH_QUERIES, len(grid)) / min(SEARCH_QUERIES, k) if found else 0.0

    def solve(some: Floats) -> tuple[float, SparseCodes]:
        l1, l2 = rule.of(some.T)
        with _timed() as solving:
            codes = space.solver.solve(some.T, l1=l1, l2=l2, nonnegative=True, gap=asked.gap, method=asked.solver)
        return solving[0] / len(some), codes

    solve_s, codes = solve(queries)
    wanted = min(len(grid), MOST_QUERIES, int(ENOUGH_S / max(solve_s, 1e-9)))
    if wanted > k:
        solve_s, _ = solve(between(queries, wanted, run.seed))
    scale = space.scale
    mean = bank.derived[f"genes/{scale.name}/mean"][chosen] if space.standardised else None
    with _timed() as one:
        list(reconstruct(codes.rows(slice(0, 1)), bank_blocks(bank, chosen, scale), len(chosen), mean))
    with _timed() as all_of_them:
        list(reconstruct(codes, bank_blocks(bank, chosen, scale), len(chosen), mean))
    more = max(0.0, all_of_them[0] - one[0]) / max(1, k - 1)
    return SolveRates(
        max(k, wanted), guessing[0] / k, searching[0] * searched, solve_s, one[0], more, float(codes.n_active.mean())
    )


def extrapolate(
    sizes: Sizes, tissue_s: float, tiles: TileRates | None, solving: SolveRates | None, *, overlap: bool,
    left_out: tuple[str, ...] = (),
) -> Forecast:  # fmt: skip
    """Rates times the number of spots; stages that were not measured are not in it."""
    n, seconds, measured = sizes.spots, {"tissue": tissue_s}, {"tiles": 0, "encoded": 0, "queries": 0}
    if tiles is not None:
        seconds["read"] = n * tiles.read_s
        measured["tiles"] = tiles.n_read
        if tiles.encode_s is not None:
            seconds["encode"] = n * tiles.encode_s
            measured["encoded"] = len(tiles.rows)
    if solving is not None:
        walks = math.ceil(n / rows_of_a_block(sizes.genes))
        seconds |= {
            "guess": n * solving.guess_s, "search": solving.search_s, "solve": n * solving.solve_s,
            "reconstruct": walks * solving.walk_s + n * solving.reconstruct_s,
        }  # fmt: skip
        measured["queries"] = solving.queries
    disk = {"embeddings": sizes.embeddings, "prediction": sizes.prediction, "scratch": sizes.scratch}
    kept = {name: n_bytes for name, n_bytes in disk.items() if n_bytes}
    return Forecast(seconds, overlap, sizes.memory, kept, measured, left_out)


def between(queries: Floats, n: int, seed: int) -> Floats:
    """(n, m): these (k, m) and points on lines between them, for as many as are missing."""
    rng = np.random.default_rng(seed)
    more = max(0, n - len(queries))
    one, other = rng.integers(len(queries), size=(2, more))
    share = rng.uniform(size=(more, 1)).astype(np.float32)
    return np.concatenate([queries, share * queries[one] + (1 - share) * queries[other]])[:n]


def resident_bytes() -> int:
    """Memory that this process holds now, without its children; 0 where the system does not say."""
    return _resident(Path("/proc/self"))


def children_bytes() -> int:
    """Memory that the processes which this one started hold now, such as the one that decodes slides."""
    found, waiting = 0, _children(Path("/proc/self"))
    while waiting:
        child = waiting.pop()
        found += _resident(child)
        waiting += _children(child)
    return found


def _resident(process: Path) -> int:
    with contextlib.suppress(OSError, ValueError):  # it may end meanwhile
        lines = (process / "status").read_text(encoding="ascii", errors="replace").splitlines()
        return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    return 0


def _children(process: Path) -> list[Path]:
    found: list[Path] = []
    with contextlib.suppress(OSError):
        for task in (process / "task").iterdir():
            found += [Path("/proc") / pid for pid in (task / "children").read_text(encoding="ascii").split()]
    return found


def chunk_of(space: QuerySpace, n: int) -> int:
    """Bytes of this machine's memory that the solver takes for those of n queries that it solves side by side."""
    atoms = space.solver.scan.atoms
    return chunk_bytes(atoms, n) if atoms.device.type == "cpu" else 0


def _few(slide: Slide, grid: TileGrid, loaded: Loaded, run: RunOptions) -> Query:
    """A query of a few spots, for what makes first guesses."""

    def tiles(other: TileGrid) -> Iterator[TileBatch]:
        return read_tiles(slide, other, batch=RUN, workers=run.workers)

    none = np.zeros((0, loaded.backbone.card.dim), np.float32)
    return Query(
        slide.slide_id, grid, loaded.backbone.card, "", {}, lambda: Embedded(none, none, grid, {}), tiles,
        options=record(loaded.loading)["options"],
    )  # fmt: skip


@contextlib.contextmanager
def _timed() -> Iterator[list[float]]:
    """A list that holds the seconds at the end."""
    spent: list[float] = []
    began = time.perf_counter()
    yield spent
    spent.append(time.perf_counter() - began)
