"""The counts of one Space Ranger section: Visium spots, and Visium HD bins pooled to square spots.

Visium's scale comes from the distance of its spots in the positions of the whole array; the diameter field of
scalefactors_json.json is often off by a fifth and is not used. HD bins are pooled by their coordinates. The module is
told which files to read, and looks for none.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genrag_cli.cohorts.base import Measured, assemble_measured, neighbour_distance, unique_genes
from genrag_cli.cohorts.pooling import pool
from genrag_cli.cohorts.spot_positions import HEXAGONAL, SQUARE, Positions, fit_pitch, read_positions
from genrag_cli.cohorts.tenx import TenxMatrix, choose_genes, join_barcodes, matrix_files, read_features, read_matrix
from genrag_cli.errors import CohortError
from genrag_cli.types import GeneNames, Ints

_LARGEST_DISAGREEMENT = 0.05


@dataclass(frozen=True)
class VisiumSpots:
    """The matrix and the spot positions of a Visium section."""

    matrix: Path
    positions: Path

    def read_genes(self) -> GeneNames:
        """(G,) genes, without features of other types."""
        return _read_genes(self.matrix)

    def files(self) -> tuple[Path, ...]:
        """Matrix and positions."""
        return (*matrix_files(self.matrix), self.positions)

    def load(self) -> Measured:
        """Reads the spots in tissue, in the order of the matrix."""
        positions, matrix = read_positions(self.positions), read_matrix(self.matrix)
        inside, where, notes = _join(self, positions, matrix)
        genes, said = choose_genes(matrix.features, self.matrix)
        pitch, doubts = self._find_pitch(positions)
        return assemble_measured(
            source=self.matrix,
            names=matrix.barcodes[inside],
            centres=positions.xy[where],
            array_rc=positions.array_rc[where],
            counts=matrix.counts[inside][:, genes],
            genes=matrix.features.names[genes],
            gene_ids=matrix.features.ids[genes],
            notes=[*notes, *said, *doubts],
            lattice_pitch_px=pitch,
        )

    def _find_pitch(self, positions: Positions) -> tuple[float | None, list[str]]:
        """Distance of neighbours over all positions, in tissue or not, and what is doubtful about it."""
        if (pitch := fit_pitch(positions.array_rc, positions.xy, HEXAGONAL)) is not None:
            return pitch, []
        doubt = f"{self.positions.name}: pixels do not follow the array's indices as Visium's do"
        try:
            return neighbour_distance(positions.xy), [f"{doubt}; the spots' distance is that of nearest neighbours"]
        except CohortError as error:
            return None, [f"{doubt}; {error.message}"]


@dataclass(frozen=True)
class HdBins:
    """The matrix and the positions of Visium HD bins of one size, pooled to square spots."""

    matrix: Path
    positions: Path
    bin_um: float
    spot_um: float
    mpp: float
    """um per px of the full-resolution image."""

    def read_genes(self) -> GeneNames:
        """(G,) genes, without features of other types."""
        return _read_genes(self.matrix)

    def files(self) -> tuple[Path, ...]:
        """Matrix and positions; what scalefactors_json.json says stands in the fields."""
        return (*matrix_files(self.matrix), self.positions)

    def load(self) -> Measured:
        """Reads the bins in tissue and sums them into squares by where they lie; sparse throughout."""
        positions, matrix = read_positions(self.positions), read_matrix(self.matrix)
        inside, where, notes = _join(self, positions, matrix)
        genes, said = choose_genes(matrix.features, self.matrix)
        # All bins in tissue is the usual case, and a copy of a large matrix is not free.
        counts = matrix.counts if len(inside) == len(matrix.barcodes) else matrix.counts[inside]
        pooled = pool(counts, positions.xy[where] * self.mpp, self.spot_um, unit_um=self.bin_um, source=self.matrix)
        full = (self.spot_um / self.bin_um) ** 2
        notes.append(
            f"{len(inside)} bins of {self.bin_um:g} um are summed into {len(pooled.n_units)} squares of "
            f"{self.spot_um:g} um, {np.count_nonzero(pooled.n_units < full / 2)} of them less than half full"
        )
        return assemble_measured(
            source=self.matrix,
            names=pooled.names,
            centres=pooled.centres_um / self.mpp,
            array_rc=pooled.rc,
            counts=pooled.counts[:, genes],
            genes=matrix.features.names[genes],
            gene_ids=matrix.features.ids[genes],
            notes=[*notes, *said, *self._compare_scale(positions)],
            lattice_pitch_px=self.spot_um / self.mpp,
        )

    def _compare_scale(self, positions: Positions) -> list[str]:
        apart = fit_pitch(positions.array_rc, positions.xy, SQUARE)
        if apart is None:
            return [f"{self.positions.name}: pixels do not follow the array's indices; the pixel size is not checked"]
        if abs(self.bin_um / apart / self.mpp - 1) <= _LARGEST_DISAGREEMENT:
            return []
        return [
            f"bins of {self.bin_um:g} um lie {apart:.4g} px apart, which is {self.bin_um / apart:.4g} um/px; they are "
            f"pooled at {self.mpp:.4g} um/px"
        ]


def _read_genes(matrix: Path) -> GeneNames:
    features = read_features(matrix)
    genes, _ = choose_genes(features, matrix)
    return unique_genes(features.names[genes], features.ids[genes])


def _join(reader: VisiumSpots | HdBins, positions: Positions, matrix: TenxMatrix) -> tuple[Ints, Ints, list[str]]:
    """Rows of the matrix that are in tissue, their rows in the list of positions, and what was left out."""
    rows, said = join_barcodes(matrix.barcodes, positions.barcodes, source=reader.matrix, other=reader.positions)
    found = rows >= 0
    kept = found.copy()
    kept[found] = positions.in_tissue[rows[found]]
    n, n_tissue, n_kept = len(rows), np.count_nonzero(positions.in_tissue), np.count_nonzero(kept)
    if not n_kept:
        raise CohortError(
            f"no barcode of {reader.matrix} is in tissue according to {reader.positions}: {n} barcodes, "
            f"{np.count_nonzero(found)} in the list, which has {n_tissue} in tissue"
        )
    notes = list(said)
    if n_lost := n - np.count_nonzero(found):
        notes.append(f"{n_lost} of {n} barcodes of {reader.matrix.name} have no position and are left out")
    if n_off := np.count_nonzero(found) - n_kept:
        notes.append(f"{n_off} of {n} barcodes of {reader.matrix.name} are not in tissue and left out")
    if n_bare := n_tissue - n_kept:
        notes.append(f"{n_bare} of {n_tissue} positions in tissue have no counts in {reader.matrix.name}")
    return np.flatnonzero(kept), rows[kept], notes
