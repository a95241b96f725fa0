"""The nouns that stages pass to each other: frozen, shape-checked, numpy only.

Letters: n queries, N bank spots, G genes, A anchor genes, d embedding dimensions.
Coordinates are x, y; arrays rows-first.
This module knows no file format, no torch and no arithmetic beyond geometry.
"""

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from genrag_cli.errors import GeneragError
from genrag_cli.units import Microns, Mpp, TilePx

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]
Strings = NDArray[np.str_]


def fingerprint(*parts: Any) -> str:
    """Hashes whole objects (dataclasses, dicts, lists, numbers, strings, arrays) to 64 hex digits.

    Equal content gives equal digests on every machine. Arrays count by dtype, shape and bytes.
    """

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, np.ndarray):
            body = (
                "\n".join(value.tolist()).encode()
                if value.dtype.kind == "U"
                else np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
            )
            kind = "U" if value.dtype.kind == "U" else value.dtype.str
            return [kind, list(value.shape), hashlib.sha256(body).hexdigest()]
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, dict):
            return {str(k): plain(v) for k, v in sorted(value.items())}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        return value

    text = json.dumps([plain(p) for p in parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _expect_shape(what: str, array: NDArray[Any], shape: tuple[int | None, ...]) -> None:
    fits = array.ndim == len(shape) and all(w in (None, g) for g, w in zip(array.shape, shape, strict=True))
    if not fits:
        raise GeneragError(f"{what}: expected shape {shape} (None is free), found {array.shape}")


@dataclass(frozen=True, eq=False)
class GeneNames:
    """The genes of a table of counts, as its source calls them."""

    names: Strings
    """(G,) symbols; stable ids where the source has no symbols."""
    ids: Strings | None = None
    """(G,) stable (Ensembl) ids, empty where one is unknown; None where the source has none."""

    def __post_init__(self) -> None:
        if self.ids is not None:
            _expect_shape("GeneNames.ids", self.ids, (len(self.names),))

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class PixelSize:
    """How many um a level-0 pixel is, where that comes from, and what other sources said."""

    mpp: Mpp
    source: str
    others: tuple[tuple[str, float], ...] = ()
    """(source, um/px) of every usable source that did not decide."""


Library = Literal["none", "panel", "all"]
Log = Literal["none", "ln", "log2", "log10"]
_LIBRARIES: tuple[Library, ...] = ("none", "panel", "all")
_LOGS: tuple[Log, ...] = ("none", "ln", "log2", "log10")


@dataclass(frozen=True)
class Scale:
    """An expression space. Two scales are never compared; `genes.scales.convert` goes from one to another."""

    library: Library = "none"
    """Which genes a spot's library size is summed over; `none`: not normalised."""
    size_factor: float = 1.0
    """Counts per spot after normalisation; 1 when library is none."""
    log: Log = "none"
    """log(1 + value) in this base."""
    smooth: bool = False
    """Each value is then the mean over the spots whose lattice row and column differ by at most 1 each."""

    @property
    def name(self) -> str:
        """A short name: `counts`, `log1p_cp10k`, ..."""
        named = {COUNTS: "counts", LOG1P_CP10K: "log1p_cp10k", LOG2_COUNTS: "log2_counts", LN_COUNTS: "ln_counts"}
        plain = f"{self.log}-{self.library}-{self.size_factor:g}" + ("-smooth" if self.smooth else "")
        return named.get(self) or plain

    @staticmethod
    def from_name(name: str) -> "Scale":
        """The scale called `name`.

        Raises:
            GeneragError: for a name that no scale has.
        """
        factor = next((float(part) for part in name.split("-") if part.isdigit()), 1.0)
        every = (Scale(own, factor, log, smooth) for own in _LIBRARIES for log in _LOGS for smooth in (False, True))
        if found := next((scale for scale in (*NAMED_SCALES, *every) if scale.name == name), None):
            return found
        raise GeneragError(f"unknown expression scale {name!r}", f"Known: {', '.join(s.name for s in NAMED_SCALES)}")


COUNTS = Scale()
LOG1P_CP10K = Scale(library="all", size_factor=1e4, log="ln")
LOG2_COUNTS = Scale(log="log2")
LN_COUNTS = Scale(log="ln")
NAMED_SCALES = (COUNTS, LOG1P_CP10K, LOG2_COUNTS, LN_COUNTS)
"""Scales that a person can name; the last two are log2 and ln of 1 + counts, not normalised."""


@dataclass(frozen=True, eq=False)
class TileGrid:
    """Where on a slide the tiles are; one per spot."""

    slide_id: str
    names: Strings
    """(n,) unique spot names."""
    centres: Doubles
    """(n, 2) x, y of the centres in level-0 px, made square where they are not."""
    array_rc: Ints
    """(n, 2) row, column in the lattice."""
    tile_px: TilePx
    """Side of a tile as the backbone sees it."""
    fov_um: Microns
    """Side of a tile on the tissue."""
    pitch_um: Microns
    """Distance between neighbouring centres."""
    pixel_size: PixelSize
    stretch: tuple[float, float] = (1.0, 1.0)  # square px per level-0 px, across and down

    def __post_init__(self) -> None:
        n = len(self.names)
        _expect_shape("TileGrid.centres", self.centres, (n, 2))
        _expect_shape("TileGrid.array_rc", self.array_rc, (n, 2))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def mpp(self) -> float:
        """um per pixel of a tile."""
        return self.fov_um / self.tile_px

    @property
    def side_px(self) -> float:
        """Side of a tile in level-0 px."""
        return self.fov_um / self.pixel_size.mpp

    @property
    def level0(self) -> Doubles:
        """(n, 2) x, y of the centres in the px that the slide has."""
        return np.divide(self.centres, self.stretch, dtype=np.float64)

    @property
    def xy(self) -> Ints:
        """(n, 2) top-left corners in level-0 px, rounded; may be negative at the edge of a slide."""
        return np.round(self.centres - self.side_px / 2).astype(np.int64)

    def rows(self, rows: Ints) -> "TileGrid":
        """The same grid cut down to some of its rows, in the order given."""
        return dataclasses.replace(
            self, names=self.names[rows], centres=self.centres[rows], array_rc=self.array_rc[rows]
        )


@dataclass(frozen=True, eq=False)
class TileBatch:
    """Pixels of some rows of a grid."""

    rows: Ints
    """(b,) rows of the grid."""
    pixels: NDArray[np.uint8]
    """(b, tile_px, tile_px, 3) RGB."""
    bad: Mapping[int, str] = field(default_factory=dict)
    """Rows that could not be read, and why; their pixels are white."""

    def __post_init__(self) -> None:
        _expect_shape("TileBatch.pixels", self.pixels, (len(self.rows), None, None, 3))


@dataclass(frozen=True)
class BackboneCard:
    """What a backbone is and needs; goes into every file that its numbers go into."""

    name: str
    revision: str
    dim: int
    """d, length of an embedding."""
    tile_px: TilePx
    """Side of the square tile that it takes."""
    licence: str
    weights_sha256: str = ""
    """Digest of the weights file; empty where there are no weights."""
    fov_um: Microns | None = None
    """Field of view that it was trained at; None where any will do (the bank's is used)."""
    deterministic: bool = True
    feature: str = ""
    """Which numbers of the network an embedding is, in words."""
    views: int = 1
    """Flips and rotations of a tile that an embedding is averaged over; 1: the tile as it is."""
    scale: str = ""
    """Expression scale of the model's own prediction; empty where it makes none."""
    genes_sha256: str = ""
    """Digest of the ordered genes of that prediction."""
    needs: tuple[str, ...] = ()
    """What that prediction looks at beside the tile: `neighbours`, `positions`, `slide`, `bank`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "needs", tuple(self.needs))  # a list where the card comes from a file


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Image embeddings of the spots of a grid."""

    values: Floats
    """(n, d)"""
    grid: TileGrid
    card: BackboneCard

    def __post_init__(self) -> None:
        _expect_shape("Embeddings.values", self.values, (len(self.grid), self.card.dim))


@dataclass(frozen=True, eq=False)
class Expression:
    """Expression of named genes at named spots, in a declared scale."""

    values: Floats
    """(n, G)"""
    names: Strings
    genes: Strings
    scale: Scale
    present: NDArray[np.bool_] | None = None
    """(n, G) False where a value is missing and `values` holds a filler; None where none is missing."""

    def __post_init__(self) -> None:
        _expect_shape("Expression.values", self.values, (len(self.names), len(self.genes)))
        if self.present is not None:
            _expect_shape("Expression.present", self.present, self.values.shape)


@dataclass(frozen=True, eq=False)
class SparseCodes:
    """The weights that a retrieval gives to bank spots: CSR over queries, and how well each was solved."""

    indptr: Ints
    """(n + 1,)"""
    indices: NDArray[np.int32]
    """(nnz,) bank rows, ascending within a query."""
    weights: Floats
    """(nnz,)"""
    n_bank: int
    """N"""
    gap: Doubles
    """(n,) relative duality gap, computed in float64."""
    passes: NDArray[np.float32]
    """(n,) looks at the whole bank that each query took (one `D' R` or `D A` product = one pass)."""
    status: Strings
    """(n,) `solved` or `stalled` (the asked gap was not reached; `gap` says what was)."""

    def __post_init__(self) -> None:
        n = len(self.indptr) - 1
        for name in ("gap", "passes", "status"):
            _expect_shape(f"SparseCodes.{name}", getattr(self, name), (n,))
        _expect_shape("SparseCodes.weights", self.weights, (len(self.indices),))

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @property
    def n_active(self) -> Ints:
        """(n,) number of bank spots with a weight, per query."""
        return np.diff(self.indptr)

    def rows(self, part: slice) -> "SparseCodes":
        """Some of the queries, in their order."""
        low, high, _ = part.indices(len(self))
        inside = slice(self.indptr[low], self.indptr[high])
        return SparseCodes(
            self.indptr[low : high + 1] - self.indptr[low], self.indices[inside], self.weights[inside], self.n_bank,
            self.gap[low:high], self.passes[low:high], self.status[low:high],
        )  # fmt: skip

    def padded(self) -> tuple[Ints, Floats]:
        """Bank rows (n, p) and weights (n, p), both 0 where a query has fewer than others."""
        count = self.n_active
        index = np.zeros((len(self), int(count.max(initial=0))), np.int64)
        weights = np.zeros(index.shape, np.float32)
        used = np.arange(index.shape[1]) < count[:, None]
        index[used], weights[used] = self.indices, self.weights
        return index, weights

    def dense(self) -> Floats:
        """(n, N) with zeros filled in; for tests and small problems."""
        out = np.zeros((len(self), self.n_bank), np.float32)
        out[np.repeat(np.arange(len(self)), self.n_active), self.indices] = self.weights
        return out


def join_codes(parts: "list[SparseCodes]") -> SparseCodes:
    """Puts codes of consecutive queries over the same bank one after the other."""
    ends = np.cumsum([0] + [len(p.indices) for p in parts])
    return SparseCodes(
        indptr=np.concatenate([[0], *(p.indptr[1:] + e for p, e in zip(parts, ends, strict=False))]).astype(np.int64),
        indices=np.concatenate([p.indices for p in parts]),
        weights=np.concatenate([p.weights for p in parts]),
        n_bank=parts[0].n_bank,
        gap=np.concatenate([p.gap for p in parts]),
        passes=np.concatenate([p.passes for p in parts]),
        status=np.concatenate([p.status for p in parts]),
    )


@dataclass(frozen=True, eq=False)
class Score:
    """One number of an evaluation, with what it was computed over."""

    method: str
    """`retrieval`, `y_init`, `shuffled`, ..."""
    panel: str
    """`core` (anchor genes) or `global`."""
    metric: str
    value: float | None
    """None where it is undefined; `note` says why."""
    n_spots: int
    n_genes: int
    n_undefined: int
    note: str = ""


@dataclass(frozen=True)
class Progress:
    """One step of long work, for whoever shows it."""

    stage: str
    done: int
    total: int
    detail: str = ""


@dataclass
class Listener:
    """Where a pipeline says what it does. The default says nothing; `cli` shows it with rich."""

    messages: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    """By stage."""

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds what is done within to the seconds of a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) - time.monotonic()
        try:
            yield
        finally:
            self.seconds[stage] += time.monotonic()

    def say(self, text: str) -> None:
        """One line a person should read."""
        self.messages.append(text)

    def warn(self, text: str) -> None:
        """One line a person should not miss."""
        self.messages.append(f"warning: {text}")

    def progress(self, step: Progress) -> None:
        """How far a stage is."""

    def event(self, name: str, /, **facts: Any) -> None:
        """Something that a program may wait for."""
