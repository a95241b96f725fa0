"""The elastic net of each query on its own pool of atoms, as compiled code for CPUs (numba): one thread per query.

A pool is solved exactly: coordinate descent finds most of the support, Newton steps (Cholesky, with a ratio test) end
it, and every atom of the pool is then looked at again with the float64 residual. `pools.py` decides when this runs and
has the plain torch path; this module does not know banks, chunks or certificates. Everything works in place.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

SWEEPS = 5
"""Coordinate descent sweeps between two Newton steps."""
TURNS = 60
"""Alternations of the two before a model is given back as it stands; the caller checks the gap anyway."""
FAST = {"reassoc", "contract", "nsz", "arcp"}
"""Sums may be taken in any order, but NaN stays NaN and infinity infinite."""

Array = NDArray[Any]
Function = TypeVar("Function", bound=Callable[..., Any])


def jit(function: Function) -> Function:
    """Compiled at the first call and kept on disk; where no folder can be written, compiled anew in each process."""
    try:
        made: Function = njit(nogil=True, cache=True, fastmath=FAST)(function)
    except RuntimeError:
        made = njit(nogil=True, fastmath=FAST)(function)
    return made


@jit
def _tile(atoms: Array, rows: Array, cols: Array, out: Array) -> None:
    """out = D_rows'D_cols for four rows and four columns, in float32: each number that is read is used four times."""
    x0, y0 = atoms[rows[0]], atoms[cols[0]]
    x1, y1 = atoms[rows[1]], atoms[cols[1]]
    x2, y2 = atoms[rows[2]], atoms[cols[2]]
    x3, y3 = atoms[rows[3]], atoms[cols[3]]
    t00 = t01 = t02 = t03 = np.float32(0)
    t10 = t11 = t12 = t13 = np.float32(0)
    t20 = t21 = t22 = t23 = np.float32(0)
    t30 = t31 = t32 = t33 = np.float32(0)
    for k in range(len(x0)):
        b0, b1, b2, b3 = y0[k], y1[k], y2[k], y3[k]
        a = x0[k]
        t00 += a * b0
        t01 += a * b1
        t02 += a * b2
        t03 += a * b3
        a = x1[k]
        t10 += a * b0
        t11 += a * b1
        t12 += a * b2
        t13 += a * b3
        a = x2[k]
        t20 += a * b0
        t21 += a * b1
        t22 += a * b2
        t23 += a * b3
        a = x3[k]
        t30 += a * b0
        t31 += a * b1
        t32 += a * b2
        t33 += a * b3
    out[0, 0], out[0, 1], out[0, 2], out[0, 3] = t00, t01, t02, t03
    out[1, 0], out[1, 1], out[1, 2], out[1, 3] = t10, t11, t12, t13
    out[2, 0], out[2, 1], out[2, 2], out[2, 3] = t20, t21, t22, t23
    out[3, 0], out[3, 1], out[3, 2], out[3, 3] = t30, t31, t32, t33


@jit
def _dot_wide(x: Array, y: Array) -> float:
    """Sum of products of float32 x with float64 y, in float64."""
    total = 0.0
    for i in range(len(x)):
        total += np.float64(x[i]) * y[i]
    return total


@jit
def _residual(atoms: Array, rows: Array, b: Array, a: Array, out: Array) -> None:
    """out = b - sum_k a_k D_rows[k], float64; four atoms at a time."""
    for i in range(len(out)):
        out[i] = b[i]
    used, weight = np.empty(4, np.int64), np.zeros(4)
    n = 0
    for k in range(len(rows)):
        if a[k] != 0.0:
            used[n], weight[n] = rows[k], a[k]
            n += 1
        if n == 4 or (n > 0 and k == len(rows) - 1):
            for i in range(n, 4):
                used[i], weight[i] = used[0], 0.0
            x0, x1, x2, x3 = atoms[used[0]], atoms[used[1]], atoms[used[2]], atoms[used[3]]
            w0, w1, w2, w3 = weight[0], weight[1], weight[2], weight[3]
            for i in range(len(out)):
                out[i] -= (w0 * x0[i] + w1 * x1[i]) + (w2 * x2[i] + w3 * x3[i])
            n = 0


@jit
def _extend(atoms: Array, rows: Array, work: Array, old: int, n: int, gram: Array) -> None:
    """Fills rows and columns old..n-1 of the Gram matrix of the working atoms, in float32 tiles of four by four."""
    tile = np.empty((4, 4), np.float32)
    across, down = np.empty(4, np.int64), np.empty(4, np.int64)
    for u in range(old, n, 4):
        for i in range(4):
            across[i] = rows[work[min(u + i, n - 1)]]
        for v in range(0, min(u + 4, n), 4):
            for i in range(4):
                down[i] = rows[work[min(v + i, n - 1)]]
            _tile(atoms, across, down, tile)
            for i in range(min(4, n - u)):
                for j in range(min(4, n - v)):
                    gram[u + i, v + j] = gram[v + j, u + i] = tile[i, j]


@jit
def _newton(gram: Array, s: Array, p: int, target: Array, l2: float, low: Array, out: Array) -> bool:
    """Solves (G_SS + l2 I) out = target by Cholesky; False where the matrix is not positive definite."""
    for i in range(p):
        for j in range(i + 1):
            total = gram[s[i], s[j]]
            if i == j:
                total += l2 + 1e-13 * gram[s[i], s[i]]
            for k in range(j):
                total -= low[i, k] * low[j, k]
            if i == j:
                if total <= 0.0:
                    return False
                low[i, i] = math.sqrt(total)
            else:
                low[i, j] = total / low[j, j]
    for i in range(p):
        total = target[i]
        for k in range(i):
            total -= low[i, k] * out[k]
        out[i] = total / low[i, i]
    for i in range(p - 1, -1, -1):
        out[i] /= low[i, i]
        x = out[i]
        for k in range(i):
            out[k] -= low[i, k] * x
    return True


@jit
def _slope(gram: Array, h: Array, a: Array, p: int, g: Array) -> None:
    """g = h - G a."""
    for j in range(p):
        g[j] = h[j]
    for k in range(p):
        if a[k] != 0.0:
            w = a[k]
            for j in range(p):
                g[j] -= w * gram[k, j]


@jit
def _offence(c: Array, a: Array, p: int, l1: float, l2: float, nonnegative: bool) -> float:
    """How far the optimality conditions are from holding, at worst: c = slope of the fit, a = weights, p of them."""
    worst = 0.0
    for j in range(p):
        if a[j] > 0.0:
            off = abs(c[j] - l2 * a[j] - l1)
        elif a[j] < 0.0:
            off = abs(c[j] - l2 * a[j] + l1)
        elif nonnegative:
            off = c[j] - l1
        else:
            off = abs(c[j]) - l1
        worst = max(worst, off)
    return worst


@jit
def _sweep(gram: Array, a: Array, p: int, l1: float, l2: float, nonnegative: bool, g: Array) -> float:
    """One sweep of coordinate descent; the largest change of a slope."""
    largest = 0.0
    for j in range(p):
        d = gram[j, j] + l2
        if d <= 0.0:
            continue
        u = g[j] + gram[j, j] * a[j]
        new = 0.0
        if u > l1:
            new = (u - l1) / d
        elif u < -l1 and not nonnegative:
            new = (u + l1) / d
        step = new - a[j]
        if step != 0.0:
            largest = max(largest, abs(step) * d)
            a[j] = new
            for k in range(p):
                g[k] -= step * gram[j, k]
    return largest


@jit
def _finish(
    gram: Array, h: Array, a: Array, p: int, l1: float, l2: float, s: Array, target: Array, low: Array, best: Array,
) -> None:  # fmt: skip
    """Newton steps on the support, up to where the first weight would change its sign, which is then dropped."""
    while True:
        n = 0
        for j in range(p):
            if a[j] != 0.0:
                s[n] = j
                target[n] = h[j] - (l1 if a[j] > 0 else -l1)
                n += 1
        if n == 0 or not _newton(gram, s, n, target, l2, low, best):
            return
        ratio = 1.0
        gone = -1
        for i in range(n):
            if best[i] * a[s[i]] <= 0.0:
                r = a[s[i]] / (a[s[i]] - best[i])
                if r < ratio:
                    ratio = r
                    gone = i
        for i in range(n):
            a[s[i]] = best[i] if gone < 0 else a[s[i]] + ratio * (best[i] - a[s[i]])
        if gone < 0:
            return
        a[s[gone]] = 0.0


@jit
def _model(
    gram: Array, h: Array, a: Array, p: int, l1: float, l2: float, nonnegative: bool, tiny: float, g: Array,
    s: Array, target: Array, low: Array, best: Array,
) -> None:  # fmt: skip
    """Minimises 1/2 a'Ga - a'h + l1 |a|_1 + l2/2 |a|^2 over p working atoms."""
    _slope(gram, h, a, p, g)
    for _turn in range(TURNS):
        for _ in range(SWEEPS):
            if _sweep(gram, a, p, l1, l2, nonnegative, g) <= tiny:
                break
        if _offence(g, a, p, l1, l2, nonnegative) <= tiny:
            return
        _finish(gram, h, a, p, l1, l2, s, target, low, best)
        _slope(gram, h, a, p, g)
        if _offence(g, a, p, l1, l2, nonnegative) <= tiny:
            return


@jit
def _look(atoms: Array, rows: Array, b: Array, a: Array, residual: Array, c: Array) -> float:
    """The residual of weights, every slope of a pool, and the size of the largest."""
    _residual(atoms, rows, b, a, residual)
    largest = 0.0
    for k in range(len(rows)):
        c[k] = _dot_wide(atoms[rows[k]], residual)
        largest = max(largest, abs(c[k]))
    return largest


@jit
def _invite(c: Array, n: int, inside: Array, threshold: float, nonnegative: bool, add: int, work: Array, p: int) -> int:
    """Takes at most `add` atoms above the threshold into the working set, largest first; its new size."""
    over = np.empty(n)
    who = np.empty(n, np.int64)
    m = 0
    for k in range(n):
        size = c[k] if nonnegative else abs(c[k])
        if not inside[k] and size > threshold:
            over[m] = -size
            who[m] = k
            m += 1
    order = np.argsort(over[:m], kind="mergesort")
    for t in range(min(m, add)):
        k = who[order[t]]
        inside[k] = True
        work[p] = k
        p += 1
    return p


@jit
def solve_range(
    atoms: Array, rows: Array, filled: Array, b: Array, l1: Array, l2: Array, nonnegative: bool, loops: int,
    add: int, exact: float, a: Array, residual: Array, c: Array, looked: Array,
) -> None:  # fmt: skip
    """Solves some queries, each on its pool.

    Args:
        atoms: (M, m) float32.
        rows: (q, K) int64, each query's pool as rows of `atoms`.
        filled: (q,) int64, how many places of a pool are in use.
        b: (q, m) float32.
        l1: (q,) float64.
        l2: (q,) float64.
        nonnegative: one-sided problem.
        loops: times that a working set is solved at most.
        add: atoms that join the working set at a time at most.
        exact: relative accuracy of the optimality conditions at which a pool is solved.
        a: (q, K) float64: start, and result.
        residual: (q, m) float64: result, b - D a.
        c: (q, K) float64: result, D'(b - D a) over the pool.
        looked: (q,) int64: result, looks at the whole pool.
    """
    q, width = rows.shape
    gram, low = np.empty((width, width)), np.empty((width, width))
    h, w, g, target, best = np.empty(width), np.empty(width), np.empty(width), np.empty(width), np.empty(width)
    work, s, inside = np.empty(width, np.int64), np.empty(width, np.int64), np.empty(width, np.bool_)
    for i in range(q):
        n = filled[i]
        mine = rows[i, :n]
        p = 0
        for k in range(n):
            inside[k] = a[i, k] != 0.0
            if inside[k]:
                work[p] = k
                p += 1
        tiny = exact * max(l1[i], _look(atoms, mine, b[i], a[i], residual[i], c[i]))
        looked[i] = 1
        done = 0
        for _loop in range(loops):
            for u in range(p):
                w[u] = a[i, work[u]]
                g[u] = c[i, work[u]]
            worst = _offence(g, w, p, l1[i], l2[i], nonnegative)
            old = p
            p = _invite(c[i], n, inside, l1[i] + tiny, nonnegative, add, work, p)
            if p == old and worst <= tiny:
                break
            _extend(atoms, mine, work, done, p, gram)
            done = p
            # The slope at the weights given is exact (float64 residual); the float32 Gram matrix only bends it.
            for u in range(p):
                w[u] = a[i, work[u]]
                h[u] = 0.0
            _slope(gram, h, w, p, g)
            for u in range(p):
                h[u] = c[i, work[u]] - g[u]
            _model(gram, h, w, p, l1[i], l2[i], nonnegative, 0.1 * tiny, g, s, target, low, best)
            for u in range(p):
                a[i, work[u]] = w[u]
            _look(atoms, mine, b[i], a[i], residual[i], c[i])
            looked[i] += 1


@jit
def settle_range(
    atoms: Array, rows: Array, filled: Array, b: Array, l1: Array, l2: Array, a: Array, residual: Array, c: Array,
) -> None:  # fmt: skip
    """Makes weights a function of their support alone, rounds them to float32, and looks at the pool once more.

    Whatever path found a support, the same one gives the same bits: it is solved from zero, in the order given, with
    two corrections by the exact residual. Where that changes a sign (weights at the edge of rounding) the weights stay.
    Arguments as in `solve_range`; the places of each pool that have a weight must come in one order (by bank row).
    """
    q, width = rows.shape
    gram, low = np.empty((width, width)), np.empty((width, width))
    target, best, w = np.empty(width), np.empty(width), np.empty(width)
    s, order = np.empty(width, np.int64), np.arange(width)
    for i in range(q):
        n = filled[i]
        mine = rows[i, :n]
        p = 0
        for k in range(n):
            w[k] = 0.0
            if a[i, k] != 0.0:
                s[p] = k
                p += 1
        _extend(atoms, mine, s, 0, p, gram)
        fits = True
        for _ in range(3):
            _residual(atoms, mine, b[i], w[:n], residual[i])
            for u in range(p):
                sign = 1.0 if a[i, s[u]] > 0 else -1.0
                target[u] = _dot_wide(atoms[mine[s[u]]], residual[i]) - l1[i] * sign - l2[i] * w[s[u]]
            fits = fits and _newton(gram, order, p, target, l2[i], low, best)
            for u in range(p):
                w[s[u]] += best[u] if fits else 0.0
        for u in range(p):
            fits = fits and w[s[u]] * a[i, s[u]] > 0.0
        for u in range(p):
            a[i, s[u]] = np.float64(np.float32(w[s[u]] if fits else a[i, s[u]]))
        _look(atoms, mine, b[i], a[i], residual[i], c[i])
