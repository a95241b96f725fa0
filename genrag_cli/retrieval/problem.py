"""One batch of queries over one dictionary in memory: what every solver works on."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """Queries with their penalties.

    Args:
        b: (q, m) queries.
        l1: (q,) weight of |a|_1.
        l2: (q,) weight of |a|^2 / 2.
        nonnegative: a >= 0, or signed.
    """

    b: Tensor
    l1: Tensor
    l2: Tensor
    nonnegative: bool

    def __len__(self) -> int:
        return len(self.b)

    def rows(self, rows: Tensor) -> "Batch":
        """Some of the queries: indices or a mask."""
        return Batch(self.b[rows], self.l1[rows], self.l2[rows], self.nonnegative)

    def double(self) -> "Batch":
        """The same in float64."""
        return Batch(self.b.double(), self.l1.double(), self.l2.double(), self.nonnegative)


@dataclass(frozen=True, eq=False)
class Solved:
    """What a solver found for one batch.

    Args:
        index: (q, p) bank rows, padded with anything where the weight is 0.
        weights: (q, p) float32.
        gap: (q,) relative duality gap in float64 of these float32 weights.
        passes: (q,) looks at the bank.
    """

    index: Tensor
    weights: Tensor
    gap: Tensor
    passes: Tensor

    @staticmethod
    def of_dense(codes: Tensor, gap: Tensor, passes: Tensor) -> "Solved":
        """From codes over the whole bank (q, N)."""
        width = int((codes != 0).sum(1).max()) if len(codes) else 0
        index = codes.abs().topk(width, dim=1).indices
        return Solved(index, codes.gather(1, index), gap, passes)


def nearest(atoms: Tensor, half_norms: Tensor, b: Tensor, k: int) -> Tensor:
    """(q, k) nearest atoms: largest D_j'b - |D_j|^2 / 2, so that a mean shared by the whole bank does not decide."""
    return (b @ atoms.T - half_norms).topk(min(k, len(atoms)), dim=1).indices
