"""A dictionary whose columns are spread over the ranks of a torch.distributed group: NCCL on GPUs, gloo on CPUs.

Every rank looks at its own columns; the best of all ranks make the pools, whose rows are brought together, and each
rank solves its share of the queries. All ranks hold the same state after every step, so all of them return the same
codes. This module only says how a `Scan` is put together; what is done with it stands in `working_set.py`.
"""

from collections.abc import Callable
from dataclasses import astuple

import torch
import torch.distributed as dist
from torch import Tensor

from genrag_cli.retrieval.atoms import Atoms, HeldAtoms
from genrag_cli.retrieval.certificate import bank_parts
from genrag_cli.retrieval.objective import GapParts
from genrag_cli.retrieval.pools import Answer
from genrag_cli.retrieval.problem import Batch
from genrag_cli.retrieval.scan import Look, Precision, Scan


class SpreadScan(Scan):
    """The columns of all ranks, in the order of ranks.

    Args:
        atoms: this rank's columns; at least one.
        group: the ranks.
        precision: of passes, as in `Scan`.
    """

    def __init__(self, atoms: Atoms, group: dist.ProcessGroup, precision: Precision | None = None) -> None:
        super().__init__(atoms, precision)
        self._group = group
        self._rank, self._world = dist.get_rank(group), dist.get_world_size(group)
        counts = self._gather(torch.tensor([atoms.n, int(self.finite)], device=atoms.device))
        sizes = [int(c[0]) for c in counts]
        self.finite = all(bool(c[1]) for c in counts)
        self._first, self._total = sum(sizes[: self._rank]), sum(sizes)
        self.narrowest = min(
            float(v) for v in self._gather(torch.tensor(self.narrowest, dtype=torch.float64, device=atoms.device))
        )
        self.sub = HeldAtoms(torch.cat(self._gather_rows(self.sub.rows)))
        self.sub_index = torch.cat(self._gather_rows(self.sub_index + self._first))

    @property
    def n(self) -> int:
        """N over all ranks."""
        return self._total

    def look(self, residual: Tensor, l1: Tensor, nonnegative: bool, k: int, *, exactly: bool = False) -> Look:
        """One pass: every rank over its own columns; the best of all of them."""
        mine = super().look(residual, l1, nonnegative, k, exactly=exactly)
        wide = min(k, self._total)
        missing = wide - mine.index.shape[1]
        score = torch.nn.functional.pad(mine.score, (0, missing), value=-torch.inf)
        index = torch.nn.functional.pad(mine.index + self._first, (0, missing))
        scores, places = torch.cat(self._gather(score), 1), torch.cat(self._gather(index), 1)
        top = scores.topk(wide, dim=1)
        chosen = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, top.indices, True)
        dropped = ~chosen[:, self._rank * wide : (self._rank + 1) * wide]
        edge = torch.where(dropped, score, -torch.inf).amax(1).double()
        return Look(places.gather(1, top.indices), top.values, torch.maximum(mine.edge, edge), mine.margin)

    def ceiling(self, look: Look, step: Tensor, nonnegative: bool) -> Tensor:
        """The highest of all ranks."""
        out = super().ceiling(look, step, nonnegative)
        dist.all_reduce(out, dist.ReduceOp.MAX, self._group)
        return out

    def table(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Rows from wherever they are."""
        wanted, local = torch.unique(index, return_inverse=True)
        own = (wanted >= self._first) & (wanted < self._first + self.atoms.n)
        rows = torch.zeros(len(wanted), self.atoms.m, device=index.device)
        if bool(own.any()):
            table, at = self.atoms.table(wanted[own] - self._first)
            rows[own] = table[at]
        dist.all_reduce(rows, dist.ReduceOp.SUM, self._group)
        return rows, local

    def divided(self, n: int, work: Callable[[Tensor], Answer]) -> Answer:
        """Each rank does its share of n queries; all get all of it."""
        share = -(-n // self._world)
        rows = torch.arange(self._rank * share, (self._rank + 1) * share, device=self.atoms.device).clamp(max=n - 1)
        parts = [torch.cat(self._gather(v.contiguous()))[:n] for v in astuple(work(rows))]
        return Answer(*parts)

    def agreed(self, flags: Tensor) -> Tensor:
        """What the first rank says, so that no rounding can part the ranks' ways."""
        out = flags.to(torch.uint8)
        dist.broadcast(out, dist.get_global_rank(self._group, 0), self._group)
        return out.bool()

    def least(self, value: int) -> int:
        """The smallest that any rank has."""
        return min(int(v) for v in self._gather(torch.tensor([value], device=self.atoms.device)))

    def gap_parts(self, batch: Batch, residual: Tensor, index: Tensor, weights: Tensor) -> GapParts:
        """Sums and maxima over all ranks."""
        parts = bank_parts(self.atoms, self._first, batch, residual, index, weights)
        dist.all_reduce(parts.excess, dist.ReduceOp.SUM, self._group)
        dist.all_reduce(parts.top, dist.ReduceOp.MAX, self._group)
        return parts

    def _gather(self, mine: Tensor) -> list[Tensor]:
        """Tensors of one shape from all ranks."""
        out = [torch.empty_like(mine) for _ in range(self._world)]
        dist.all_gather(out, mine.contiguous(), self._group)
        return out

    def _gather_rows(self, mine: Tensor) -> list[Tensor]:
        """Tensors of any length from all ranks."""
        lengths = [int(v) for v in self._gather(torch.tensor([len(mine)], device=mine.device))]
        room = mine.new_zeros(max(lengths), *mine.shape[1:])
        room[: len(mine)] = mine
        return [rows[:length] for rows, length in zip(self._gather(room), lengths, strict=True)]
