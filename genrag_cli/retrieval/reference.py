"""Plain cyclic coordinate descent in float64, one query at a time: slow, obvious, and the oracle of the tests."""

import numpy as np

from genrag_cli.types import Doubles


def coordinate_descent(
    dictionary: Doubles, query: Doubles, l1: float, l2: float, nonnegative: bool, sweeps: int = 100_000
) -> Doubles:
    """Minimises 1/2 |b - D a|^2 + l1 |a|_1 + l2/2 |a|^2 until weights move by < 1e-13 of the largest.

    Args:
        dictionary: D (m, N).
        query: b (m,).
        l1: weight of |a|_1.
        l2: weight of |a|^2 / 2.
        nonnegative: a >= 0.
        sweeps: bound on the number of sweeps.

    Returns:
        a (N,).
    """
    norms = (dictionary**2).sum(0)
    a = np.zeros(dictionary.shape[1])
    residual = query.astype(np.float64).copy()
    for _ in range(sweeps):
        moved = 0.0
        for j in np.flatnonzero(norms):
            pull = dictionary[:, j] @ residual + norms[j] * a[j]
            new = max(pull - l1, 0.0) if nonnegative else np.sign(pull) * max(abs(pull) - l1, 0.0)
            new /= norms[j] + l2
            if new != a[j]:
                residual += dictionary[:, j] * (a[j] - new)
                moved = max(moved, abs(a[j] - new))
                a[j] = new
        if moved <= 1e-13 * max(np.abs(a).max(), 1e-300):
            break
    return a


def value(dictionary: Doubles, query: Doubles, a: Doubles, l1: float, l2: float) -> float:
    """P(a) in float64."""
    return float(0.5 * ((query - dictionary @ a) ** 2).sum() + l1 * np.abs(a).sum() + 0.5 * l2 * (a**2).sum())
