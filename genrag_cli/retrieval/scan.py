"""One pass over a dictionary: for every query the atoms that want in most, and a bound on all the others.

Atoms are ranked by s_j = (c_j - l1) / v_j with c_j = D_j'r (|c_j| when signed) and v_j = |D_j - centre|: how far the
residual must move before the atom may want in. Products may be taken in bfloat16, since every look carries a rigorous
bound on its rounding; what is inside is looked at again exactly by `pools.py`. The N x Q product is never stored:
blocks of it are cut down to the best at once. This module solves nothing.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from genrag_cli.retrieval import pools
from genrag_cli.retrieval.atoms import STREAM_ROWS, Atoms, HeldAtoms
from genrag_cli.retrieval.best import CompiledBest, TorchBest
from genrag_cli.retrieval.certificate import bank_parts
from genrag_cli.retrieval.objective import GapParts
from genrag_cli.retrieval.pools import Answer
from genrag_cli.retrieval.problem import Batch

COLUMNS = 16_384
"""Atoms per block of a pass."""
SUB_BANK = 1600
"""Atoms that a first guess looks at, at least."""
WIDEST_STRIDE = 64
HALF = 2.0**-8
"""Unit roundoff of bfloat16."""
SINGLE = 2.0**-24
"""Unit roundoff of float32."""
SMALLEST = 2.0**-126
"""Products below it may be taken for 0."""

Precision = Literal["bfloat16", "float32"]


@dataclass(frozen=True, eq=False)
class Look:
    """What a pass found.

    Args:
        index: (q, k) the atoms with the largest scores.
        score: (q, k) their scores, as they were computed.
        edge: (q,) float64; no other atom has a larger score, as it was computed.
        margin: (q,) float64; what rounding may have taken from the score of an atom at or below the edge.
    """

    index: Tensor
    score: Tensor
    edge: Tensor
    margin: Tensor

    def rows(self, rows: Tensor) -> "Look":
        """Some of the queries."""
        return Look(self.index[rows], self.score[rows], self.edge[rows], self.margin[rows])


def fast_precision(device: torch.device) -> Precision:
    """bfloat16 where the machine multiplies it faster than float32, else float32."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    has = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return "bfloat16" if device.type == "cpu" and has is not None and has() else "float32"


def _room(n: int, m: int, device: torch.device) -> Tensor:
    """Empty bfloat16 (n, m). On CPUs numpy asks for it, because it takes large pages, which fill twice as fast."""
    if device.type != "cpu":
        return torch.empty(n, m, dtype=torch.bfloat16, device=device)
    return torch.from_numpy(np.empty((n, m), np.int16)).view(torch.bfloat16)


class Scan:
    """A dictionary made ready for passes: norms, a centre, a sub-bank for first guesses, a low-precision copy.

    Args:
        atoms: the dictionary.
        precision: of passes; None takes what the machine is fastest at.
    """

    def __init__(self, atoms: Atoms, precision: Precision | None = None) -> None:
        self.atoms = atoms
        self.precision: Precision = precision or fast_precision(atoms.device)
        if atoms.device.type == "cuda":  # the bounds below are for sums in float32
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
            torch.backends.cuda.matmul.allow_tf32 = False
        n = atoms.n
        stride = max(1, min(WIDEST_STRIDE, n // SUB_BANK))
        # Any centre will do; the first rows are the same however blocks arrive.
        first = next(iter(atoms.blocks(min(n, STREAM_ROWS))))[1]
        self._centre = first[::stride].mean(0)
        keep_low = isinstance(atoms, HeldAtoms) and self.precision == "bfloat16"
        self._low = _room(n, atoms.m, atoms.device) if keep_low else None
        norms, centred, sub = torch.empty(n, device=atoms.device), torch.empty(n, device=atoms.device), []
        middle = float(self._centre.square().sum())
        for low, block in atoms.blocks(COLUMNS):
            part = slice(low, low + len(block))
            norms[part] = torch.linalg.vector_norm(block, dim=1)
            centred[part] = norms[part].square() - 2 * (block @ self._centre) + middle
            sub.append(block[(-low) % stride :: stride].clone())
            if self._low is not None:
                self._low[part] = block
        self.largest = float(norms.max())
        """Largest |D_j|."""
        self.finite = bool(torch.isfinite(norms).all())
        """Whether every value of the dictionary is."""
        # Cancellation costs a little of float32; v_j must not be too small for the bounds, so it is raised by that.
        spread = (centred.clamp(min=0) + 1e-5 * (norms.square() + middle)).sqrt()
        spread = spread.clamp(min=max(0.1 * float(spread.median()), 1e-30))
        self._inverse = 1 / spread
        self._steepest = float(self._inverse.max()) * (1 + 1e-6)
        self.narrowest = 1 / self._steepest
        """No v_j is smaller: an atom whose score is at most s < 0 has c_j <= l1 + s x this."""
        self._stretch = float((norms * self._inverse).max()) * (1 + 1e-6)
        self.sub = HeldAtoms(torch.cat(sub))
        self.sub_index = torch.arange(0, n, stride, device=atoms.device)

    @property
    def n(self) -> int:
        """N, how many atoms are looked at."""
        return self.atoms.n

    @cached_property
    def _sub_rows(self) -> tuple[Tensor, Tensor]:
        rows = self.sub.rows
        return rows.bfloat16() if self.precision == "bfloat16" else rows, rows.square().sum(1) / 2

    def nearest(self, b: Tensor, k: int) -> Tensor:
        """(q, k) nearest rows of the sub-bank: largest D_j'b - |D_j|^2 / 2, so that a shared mean does not decide."""
        rows, half = self._sub_rows
        near = (b.to(rows.dtype) @ rows.T).float() - half
        return near.topk(min(k, len(rows)), dim=1).indices

    def look(self, residual: Tensor, l1: Tensor, nonnegative: bool, k: int, *, exactly: bool = False) -> Look:
        """One pass.

        Args:
            residual: r (q, m) float64.
            l1: (q,).
            nonnegative: one-sided problem.
            k: atoms to keep per query; all of them where the dictionary has no more.
            exactly: float32 products, even where bfloat16 is faster.
        """
        single = residual.float()
        rough = self.precision == "bfloat16" and not exactly
        left = single.bfloat16() if rough else single
        l1 = l1.float()
        k = min(k, self.atoms.n)
        kind = CompiledBest if pools.engine(single.device.type) == "compiled" else TorchBest
        best = kind(l1, k, nonnegative)
        for low, block in self._blocks(rough):
            best.take(left @ block.T, self._inverse[low : low + len(block)], low)
        score, place = best.end()
        least = score.amin(1).double()
        edge = torch.full_like(least, -torch.inf) if k == self.atoms.n else least
        return Look(place, score, edge, self._margin(residual, left, l1.double(), least, rough))

    def ceiling(self, look: Look, step: Tensor, nonnegative: bool) -> Tensor:
        """(q,) float64: no atom outside the look has a score above it once the residual has moved by `step` (q, m).

        D_j'step = (D_j - centre)'step + centre'step, and |D_j - centre| / v_j <= 1.
        """
        along = step @ self._centre.double()
        along = along.clamp(min=0) if nonnegative else along.abs()
        rise: Tensor = torch.linalg.vector_norm(step, dim=1) + along * self._steepest
        return look.edge + look.margin + rise

    def table(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """A table (M, m) float32 that holds the atoms asked for, and where: `index` (q, k) renumbered into it."""
        return self.atoms.table(index)

    def divided(self, n: int, work: Callable[[Tensor], Answer]) -> Answer:
        """Work on n queries that needs no pass: here all of them."""
        return work(torch.arange(n, device=self.atoms.device))

    def agreed(self, flags: Tensor) -> Tensor:
        """Flags that decide how to go on."""
        return flags

    def least(self, value: int) -> int:
        """The smallest that any rank has."""
        return value

    def gap_parts(self, batch: Batch, residual: Tensor, index: Tensor, weights: Tensor) -> GapParts:
        """What duality gaps are made of, from one float64 pass over everything."""
        return bank_parts(self.atoms, 0, batch, residual, index, weights)

    def _blocks(self, rough: bool) -> Iterable[tuple[int, Tensor]]:
        if self._low is not None and rough:
            return HeldAtoms(self._low).blocks(COLUMNS)
        blocks = self.atoms.blocks(COLUMNS)
        return ((low, block.bfloat16()) for low, block in blocks) if rough else blocks

    def _margin(self, residual: Tensor, left: Tensor, l1: Tensor, edge: Tensor, rough: bool) -> Tensor:
        """The largest error that a score at or below `edge` can have (q,) float64.

        With u the unit roundoff of the factors: |c - c'| <= u |D_j| |r| + (1 + u) |D_j| |r - r'| for the rounded
        factors, (m + 8) 2^-23 |D_j| |r| for sums in float32 in any order, and u |c| for a rounded result, where |c| v_j
        is at most l1 / v_j + |edge| for the scores that matter.
        """
        size = torch.linalg.vector_norm(residual, dim=1)
        lost = torch.linalg.vector_norm(residual - left.double(), dim=1)
        sums = (self.atoms.m + 8) * 2 * SINGLE * size
        unit = HALF if rough else SINGLE
        factors = (unit if rough else 0.0) * size + (1 + unit) * lost
        bounded: Tensor = 1.01 * (self._stretch * (factors + sums) + 2 * unit * (l1 * self._steepest + edge.abs()))
        return bounded + (self.atoms.m + 8) * SMALLEST * self._steepest
