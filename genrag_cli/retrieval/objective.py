"""The elastic net of Eq. 1 (Kim et al., MICCAI 2026): value, proximal step, duality gap, names of strengths.

For a query b (m,) and a dictionary D (m, N) the problem is

    minimise over a:  1/2 |b - D a|^2 + l1 |a|_1 + l2/2 |a|^2        (a >= 0 unless signed)

This module knows formulas. It knows nothing of banks, genes, iterations or devices. Tensors are query-major: A (q, N),
residuals R (q, m), correlations C (q, N); l1 and l2 are (q,).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from genrag_cli.errors import UsageError


@dataclass(frozen=True)
class Strength:
    """How strongly the two penalties pull, in the solver's own terms, with the other two vocabularies as properties.

    Args:
        l1: weight of |a|_1.
        l2: weight of |a|^2 / 2.
        rows: m, the number of rows of the dictionary (only the published code's `alpha` depends on it).
    """

    l1: float
    l2: float
    rows: int

    @staticmethod
    def from_paper(lambda_: float, gamma: float, rows: int) -> "Strength":
        """From the paper's lambda and gamma: l1 = (1 - gamma) lambda / 2, l2 = gamma lambda."""
        if lambda_ < 0 or not 0 <= gamma <= 1:
            raise UsageError(f"lambda {lambda_} and gamma {gamma} asked; lambda >= 0 and 0 <= gamma <= 1 are possible")
        return Strength((1 - gamma) * lambda_ / 2, gamma * lambda_, rows)

    @staticmethod
    def from_code(alpha: float, l1_ratio: float, rows: int) -> "Strength":
        """From the published code's alpha and l1_ratio r: l1 = m alpha r, l2 = m alpha (1 - r)."""
        if alpha < 0 or not 0 <= l1_ratio <= 1:
            raise UsageError(
                f"alpha {alpha}, l1_ratio {l1_ratio} asked; alpha >= 0 and 0 <= l1_ratio <= 1 are possible"
            )
        return Strength(rows * alpha * l1_ratio, rows * alpha * (1 - l1_ratio), rows)

    @property
    def lambda_(self) -> float:
        """The paper's lambda = 2 l1 + l2."""
        return 2 * self.l1 + self.l2

    @property
    def gamma(self) -> float:
        """The paper's gamma = l2 / lambda; 0 where lambda is 0."""
        return self.l2 / self.lambda_ if self.lambda_ else 0.0

    @property
    def alpha(self) -> float:
        """The published code's alpha = (l1 + l2) / m."""
        return (self.l1 + self.l2) / self.rows

    @property
    def l1_ratio(self) -> float:
        """The published code's l1_ratio = l1 / (l1 + l2); 1 where both are 0."""
        return self.l1 / (self.l1 + self.l2) if self.l1 + self.l2 else 1.0


def shrink(values: Tensor, threshold: Tensor, nonnegative: bool) -> Tensor:
    """The proximal step of threshold |a|_1: soft thresholding, one-sided where weights must not be negative."""
    if nonnegative:
        return (values - threshold).clamp_(min=0)
    return values.sign() * (values.abs() - threshold).clamp_(min=0)


def objective(residual: Tensor, codes: Tensor, l1: Tensor, l2: Tensor) -> Tensor:
    """P(a) per query: residual (q, m), codes (q, anything that holds every non-zero weight) -> (q,)."""
    return 0.5 * residual.square().sum(1) + l1 * codes.abs().sum(1) + 0.5 * l2 * codes.square().sum(1)


def strongest_useful_l1(correlations: Tensor, nonnegative: bool) -> Tensor:
    """The l1 from which on a = 0 is optimal, per query: max_j D_j'b (of its size, when signed), never below 0."""
    top = correlations if nonnegative else correlations.abs()
    return top.max(dim=1).values.clamp(min=0)


@dataclass(frozen=True)
class GapParts:
    """Sums over the bank that both duality bounds are made of; block sums add up, maxima join.

    With p_j = c_j (nonnegative) or |c_j| (signed):
    `excess` = sum_j (p_j - l1)_+^2, `top` = max_j (c_j - l2 a_j), or max_j |c_j - l2 a_j| when signed.
    """

    excess: Tensor
    top: Tensor

    @staticmethod
    def of(correlations: Tensor, codes: Tensor, l1: Tensor, l2: Tensor, nonnegative: bool) -> "GapParts":
        """Sums one block of the bank: correlations and codes (q, block)."""
        size = correlations if nonnegative else correlations.abs()
        excess = (size - l1[:, None]).clamp_(min=0).square_().sum(1)
        slack = correlations - l2[:, None] * codes
        return GapParts(excess, (slack if nonnegative else slack.abs_()).amax(1))

    def join(self, other: "GapParts") -> "GapParts":
        """The parts of two blocks together."""
        return GapParts(self.excess + other.excess, torch.maximum(self.top, other.top))


def relative_gap(query: Tensor, residual: Tensor, codes: Tensor, parts: GapParts, l1: Tensor, l2: Tensor) -> Tensor:
    """(P - best valid dual bound) / P per query, clamped at 0; P = 0 counts as 0.

    Args:
        query: b, (q, m).
        residual: b - D a, (q, m).
        codes: the weights, (q, N) or any (q, p) that holds every non-zero of them.
        parts: sums over the *whole* bank of the correlations D'(b - D a).
        l1: (q,).
        l2: (q,).

    Two bounds (definitions section 1): Fenchel-Young, which needs l2 > 0, and the scaled residual, for tiny l2.
    sum_j a_j c_j is taken as b'r - |r|^2, so no gather over the bank is needed.
    """
    primal = objective(residual, codes, l1, l2)
    rr = residual.square().sum(1)
    br = (query * residual).sum(1)
    aa = codes.square().sum(1)
    tiny = torch.finfo(primal.dtype).tiny
    young = l1 * codes.abs().sum(1) + 0.5 * l2 * aa + parts.excess / (2 * l2).clamp(min=tiny) - (br - rr)
    young = torch.where((l2 > 0) | (parts.excess == 0), young, torch.full_like(young, torch.inf))
    q = rr + l2 * aa
    cap = torch.where(parts.top > 0, l1 / parts.top.clamp(min=tiny), torch.full_like(l1, torch.inf))
    s = torch.minimum((br / q.clamp(min=tiny)).clamp(min=0), cap)
    s = torch.where(q > 0, s, torch.zeros_like(s))
    scaled = primal - (s * br - 0.5 * s.square() * q)
    gap = torch.minimum(young, scaled).clamp(min=0)
    share = torch.where(primal == 0, 0.0, gap / primal.clamp(min=tiny))
    return torch.where(torch.isnan(share), torch.inf, share)
