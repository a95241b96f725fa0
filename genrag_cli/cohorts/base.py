"""What a measured section is, whatever format it comes from.

Knows names, counts, coordinates and lattice spacing. It does not know any file format, opens no slide,
and turns no counts into another expression scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from genrag_cli.errors import CohortError, nearest
from genrag_cli.types import Doubles, GeneNames, Ints, Strings

EMPTY_REMEDY = "Complete the file, or leave the section out (build-bank --exclude)."
# A square lattice has its diagonal neighbours at 1.41 pitches, a hexagonal one its second ring at 1.73.
_NEIGHBOUR_BAND = (0.75, 1.25)


@dataclass(frozen=True)
class Reading:
    """How sections are read where a layout leaves a choice; the same for every section of a cohort."""

    spot_um: float | None = None
    """Side of the square spots that cells (Xenium) and bins (Visium HD) are pooled to; None: the format's own."""
    bin_um: int | None = None
    """Which binned output of Visium HD is read, by its side; None: the format's own."""
    mpp: float | None = None
    """um per level-0 px that a person stated; needed to pool what has coordinates in px only."""


@dataclass(frozen=True, eq=False)
class Measured:
    """The counts of one section and where its n spots lie."""

    names: Strings
    """(n,) unique spot names."""
    centres: Doubles
    """(n, 2) x, y of the spot centres in level-0 px; NaN where the source has no coordinates (`read_truth` only)."""
    array_rc: Ints
    """(n, 2) row, column in the lattice."""
    counts: Any
    """(n, G) scipy CSR of raw counts: int32 where all are whole numbers, else float32."""
    genes: Strings
    """(G,) unique symbols; stable ids where the source has no symbols."""
    gene_ids: Strings | None
    """(G,) stable ids (Ensembl), empty where one is unknown; None where the source has none."""
    total_counts: Doubles
    """(n,) counts of a spot over all genes of the section; stays so when columns are dropped later."""
    notes: tuple[str, ...] = ()
    """What a person should know: spots left out, columns summed, values that look unlike counts."""
    lattice_pitch_px: float | None = None
    """Distance between lattice neighbours in level-0 px, where the source gives more than the measured centres do
    (array indices, all spots of the array, the side of a bin)."""
    n_repeated: int = 0
    """Columns that repeated the name of another and were summed into it."""

    def __post_init__(self) -> None:
        n, n_genes = len(self.names), len(self.genes)
        expected = {"centres": (n, 2), "array_rc": (n, 2), "counts": (n, n_genes), "total_counts": (n,)}
        for what, shape in expected.items():
            if (found := getattr(self, what).shape) != shape:
                raise CohortError(f"Measured.{what}: expected shape {shape}, found {found}")
        if self.gene_ids is not None and len(self.gene_ids) != n_genes:
            raise CohortError(f"Measured.gene_ids: expected {n_genes}, found {len(self.gene_ids)}")
        refuse_duplicates(self.names, "spot name", "the section")
        refuse_duplicates(self.genes, "gene", "the section")

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def pitch_px(self) -> float:
        """Distance between lattice neighbours in level-0 px: what the source knows, else the median over the centres.

        Raises:
            CohortError: for fewer than two spots, or coordinates that are missing or all the same.
        """
        return self.lattice_pitch_px or neighbour_distance(self.centres)

    @property
    def gene_names(self) -> GeneNames:
        """Names and ids of the columns."""
        return GeneNames(self.genes, self.gene_ids)


class SectionReader(Protocol):
    """Reads one section. Implementations are small frozen dataclasses of paths, so that they can be hashed and sent."""

    def load(self) -> Measured:
        """Reads everything."""

    def read_genes(self) -> GeneNames:
        """Reads only what the gene names need; equals `load().gene_names`."""

    def files(self) -> tuple[Path, ...]:
        """Every file that `load` reads; their content decides whether a section has changed."""


@dataclass(frozen=True)
class Section:
    """One tissue slice: who it is from, its image, and how to read its counts."""

    name: str
    patient: str | None
    """None is unknown, which is not the same as a patient of its own."""
    slide: Path | None
    counts: Path
    """The file that holds the counts, for messages and digests; `load` may read others too."""
    reader: SectionReader
    technology: str = "unknown"
    """`st`, `visium`, `visium-hd`, `xenium` or `unknown`."""
    species: str | None = None
    """`human`, `mouse`, or another name in lower case, where metadata state it; None is unknown."""
    patches: Path | None = None
    """HEST-style HDF5 of tiles cut around the spots, for sections whose slide is not at hand."""
    spot_diameter_um: float | None = None
    spot_pitch_um: float | None = None
    """Distance between neighbouring spots on the array; None where the technology says nothing about it."""
    mpp_given: float | None = None
    """um per level-0 px that a person stated for this section."""
    pixel_size_candidates: tuple[tuple[str, float], ...] = ()
    """(source, um/px) stated by metadata beside the slide, most trusted first; never read from the slide itself."""
    metadata: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What a person should know before anything is loaded: images that cannot serve, files that disagree."""

    @property
    def image(self) -> Path | None:
        """Where its tiles come from: the slide, else the patches."""
        return self.slide or self.patches

    def load(self) -> Measured:
        """Reads counts and coordinates.

        Raises:
            CohortError: for files that are damaged, do not fit together, or share no spot.
        """
        return self.reader.load()

    def read_genes(self) -> GeneNames:
        """(G,) genes of the section, read without the counts."""
        return self.reader.read_genes()


@dataclass(frozen=True)
class Cohort:
    """The sections found under one folder."""

    root: Path
    """The folder, or the manifest."""
    format: str
    sections: tuple[Section, ...]
    """Sections that have counts and a slide (or patches)."""
    skipped: tuple[tuple[str, str], ...] = ()
    """(name, reason) of what is there and cannot be used with a slide."""
    warnings: tuple[str, ...] = ()
    without_slide: tuple[Section, ...] = ()
    """Sections that are skipped for want of a slide; their counts can still serve as truth."""
    panel: Path | None = None
    """A list of genes that the cohort brings and wants predicted (HEST-bench)."""

    def section(self, name: str) -> Section:
        """The section called `name`, with a slide or without.

        Raises:
            CohortError: for an unknown name, or one whose counts cannot be read; says which is meant or why not.
        """
        known = {s.name: s for s in (*self.sections, *self.without_slide)}
        if name in known:
            return known[name]
        reasons = dict(self.skipped)
        if name in reasons:
            raise CohortError(f"section {name!r} of {self.root} cannot be used: {reasons[name]}")
        raise CohortError(f"no section {name!r} in {self.root} ({self.format})", nearest(name, known))


class CohortFormat(Protocol):
    """A layout of measured sections. A module with these four names is one; see `cohorts.open` for how it plugs in."""

    LAYOUT: str
    """What is looked for, in a few words, for messages."""

    def looks_like(self, root: Path) -> bool:
        """Whether the folder has this layout; cheap, opens no large file."""

    def read_cohort(self, root: Path, reading: Reading) -> Cohort:
        """Lists the sections; opens no counts.

        Raises:
            CohortError: for metadata that cannot be read.
        """

    def read_one(self, counts: Path, reading: Reading) -> Section | None:
        """The one section whose `Section.counts` is `counts` (for manifests), completed from what lies beside it.

        None where the path is none of this layout's; the format then says nothing about it.
        """


def refuse_duplicates(values: ArrayLike, what: str, where: object) -> None:
    """Raises CohortError naming the first repeated values, if any value occurs twice."""
    unique, times = np.unique(np.asarray(values), return_counts=True)
    if len(repeated := unique[times > 1]):
        shown = ", ".join(map(str, repeated[:5]))
        raise CohortError(
            f"{where}: {len(repeated)} {what}(s) occur more than once, such as {shown}",
            "Names must be unique: rename or remove the repeats in the source.",
        )


def assemble_measured(
    *,
    source: Path,
    names: ArrayLike,
    centres: ArrayLike,
    array_rc: ArrayLike,
    counts: Any,
    genes: ArrayLike,
    gene_ids: ArrayLike | None = None,
    notes: Sequence[str] = (),
    lattice_pitch_px: float | None = None,
) -> Measured:
    """Brings a reader's raw arrays to the declared dtypes and checks that they can be counts.

    Columns that share a name are summed into the first of them (several probes or ids of one gene) and noted; which
    names are one gene beyond being equal is not decided here.

    Args:
        source: file to name in messages.
        names: (n,) spot names.
        centres: (n, 2) level-0 px, x then y.
        array_rc: (n, 2) row, column.
        counts: (n, G) dense or any scipy sparse layout, over all genes of the section.
        genes: (G,) symbols.
        gene_ids: (G,) or None.
        notes: what the reader has to say.
        lattice_pitch_px: see `Measured`.

    Raises:
        CohortError: for no spots, no genes, negative or non-finite values, shapes or names that do not fit.
    """
    from scipy import sparse

    matrix = sparse.csr_matrix(counts)
    if 0 in matrix.shape:
        raise CohortError(
            f"{source}: no counts, the table has {matrix.shape[0]} spots and {matrix.shape[1]} genes", EMPTY_REMEDY
        )
    refuse_duplicates(names, "spot name", source)
    said = list(notes)
    listed = unique_genes(genes, gene_ids)
    matrix, n_repeated = _sum_columns(matrix, np.asarray(genes, dtype=np.str_))
    if n_repeated:
        said.append(f"{n_repeated} columns of {source.name} repeat a gene's name and are summed into the first")
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    data = matrix.data
    if not np.all(np.isfinite(data)) or (len(data) and data.min() < 0):
        raise CohortError(
            f"{source}: negative or non-finite values among the counts", "Give raw counts, not scaled expression."
        )
    whole = bool(np.all(data == np.round(data))) and (not len(data) or data.max() < 2**31)
    if not whole:
        said.append(f"{source.name}: not all counts are whole numbers; they are used as they are")
    totals = np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()
    if n_empty := int((totals == 0).sum()):
        said.append(f"{n_empty} of {len(totals)} spots of {source.name} hold no counts")
    return Measured(
        names=np.asarray(names, dtype=np.str_),
        centres=np.asarray(centres, dtype=np.float64),
        array_rc=np.asarray(array_rc, dtype=np.int64),
        counts=matrix.astype(np.int32 if whole else np.float32),
        genes=listed.names,
        gene_ids=listed.ids,
        total_counts=totals,
        notes=tuple(said),
        lattice_pitch_px=lattice_pitch_px,
        n_repeated=n_repeated,
    )


def unique_genes(names: ArrayLike, ids: ArrayLike | None) -> GeneNames:
    """The genes that columns of these names come to: each name once, in order of first occurrence, with its first id.

    Readers use it in `read_genes`, so that it agrees with what `assemble_measured` makes.
    """
    listed = np.asarray(names, dtype=np.str_)
    first = np.sort(np.unique(listed, return_index=True)[1])
    return GeneNames(listed[first], None if ids is None else np.asarray(ids, dtype=np.str_)[first])


def _sum_columns(matrix: Any, genes: Strings) -> tuple[Any, int]:
    """Sums columns of equal name into the first; returns the matrix and how many columns went."""
    from scipy import sparse

    _, first, inverse = np.unique(genes, return_index=True, return_inverse=True)
    if len(first) == len(genes) or matrix.shape[1] != len(genes):
        return matrix, 0
    order = np.argsort(first)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    into = (np.ones(len(genes), matrix.dtype), (np.arange(len(genes)), rank[inverse]))
    return sparse.csr_matrix(matrix @ sparse.csr_matrix(into)), len(genes) - len(first)


def neighbour_distance(centres: Doubles) -> float:
    """The median distance between lattice neighbours, in the unit of `centres`.

    The nearest neighbour alone is biased low when positions are jittered (legacy ST: by 6 %), so all neighbours within
    a band around the estimate count, and the band is centred twice. Holes and single stray spots do not move it.

    Args:
        centres: (n, 2).

    Raises:
        CohortError: for fewer than two spots, or coordinates that are missing or all the same.
    """
    from scipy.spatial import cKDTree

    if len(centres) < 2 or not np.all(np.isfinite(centres)):
        raise CohortError(f"the distance between spots needs two or more spots with coordinates, found {len(centres)}")
    around: NDArray[Any] = cKDTree(centres).query(centres, k=min(9, len(centres)))[0][:, 1:]
    pitch = float(np.median(around[:, 0]))
    for _ in range(2):
        inside = (around > _NEIGHBOUR_BAND[0] * pitch) & (around < _NEIGHBOUR_BAND[1] * pitch)
        pitch = float(np.median(around[inside])) if inside.any() else pitch
    if pitch <= 0:
        raise CohortError(f"most of the {len(centres)} spots lie on top of each other: no distance between spots")
    return pitch


def lattice_indices(centres: Doubles) -> Ints:
    """(n, 2) row, column made from coordinates by rounding to the pitch, for sources whose own indices are absent.

    Assumes a lattice along the image axes; spots closer than half a pitch share an index.
    """
    if len(centres) < 2:
        return np.zeros((len(centres), 2), np.int64)
    xy = np.round((centres - centres.min(axis=0)) / neighbour_distance(centres)).astype(np.int64)
    return np.ascontiguousarray(xy[:, ::-1])
