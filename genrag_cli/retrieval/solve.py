"""The library's front door: any dictionary, any queries, numpy or torch in, `SparseCodes` out."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genrag_cli.errors import SolverError
from genrag_cli.retrieval.atoms import HeldAtoms
from genrag_cli.retrieval.fista import lipschitz, solve_dense
from genrag_cli.retrieval.problem import Batch, Solved
from genrag_cli.retrieval.scan import Scan
from genrag_cli.retrieval.working_set import solve_working_set
from genrag_cli.types import SparseCodes, join_codes

Array = NDArray[Any] | Tensor
MAX_ROUNDS = 60
TIGHTEST_GAP = 1e-7
"""float32 weights cannot promise less."""


def solve(
    dictionary: Array,
    queries: Array,
    *,
    l1: float | Array,
    l2: float | Array,
    nonnegative: bool = True,
    gap: float = 1e-4,
    method: Literal["working-set", "dense"] = "working-set",
    chunk: int = 256,
    max_iter: int = 20_000,
    device: str | torch.device | None = None,
    start: SparseCodes | None = None,
    on_progress: Callable[[int], None] = lambda _: None,
) -> SparseCodes:
    """Minimises 1/2 |b - D a|^2 + l1 |a|_1 + l2/2 |a|^2 for every column b of `queries`.

    Args:
        dictionary: D, (m, N) float32; one column per bank spot.
        queries: (m, n) float32; one column per query.
        l1: one value or one per query, >= 0.
        l2: one value or one per query, >= 0.
        nonnegative: a >= 0 (the default) or signed.
        gap: relative duality gap (P - dual) / P that every query must reach by itself; 1e-7 is the tightest.
        method: `working-set` looks at the whole bank only to certify; `dense` is FISTA over all of it, the oracle.
        chunk: queries solved side by side; memory grows with chunk x N, the result does not depend on it.
        max_iter: iterations (dense) or rounds (working-set, at most 60) after which a query is returned with status
            `stalled` and the gap that it has.
        device: where to compute; the dictionary's own device, else the CPU.
        start: codes to begin from (warm start), same N and n.
        on_progress: told how many more queries are done.

    Returns:
        `SparseCodes`; `gap` is recomputed in float64 from the returned weights, `status` is `solved` or `stalled`.

    Raises:
        SolverError: for shapes that do not fit, values that are not finite, or a penalty or gap that is out of range.
    """
    atoms, rows = _rows("dictionary", dictionary, device), _rows("queries", queries, device)
    if rows.shape[1] != atoms.shape[1]:
        raise SolverError(f"dictionary has {atoms.shape[1]} rows, queries have {rows.shape[1]}; they must be equal")
    rows = rows.to(atoms.device)
    n, n_bank = len(rows), len(atoms)
    if n_bank == 0:
        raise SolverError("the dictionary has no columns: nothing to retrieve from")
    if not TIGHTEST_GAP <= gap < 1:
        raise SolverError(f"gap {gap:g} asked; {TIGHTEST_GAP:g} <= gap < 1 is possible with float32 weights")
    if method not in ("working-set", "dense"):
        raise SolverError(f"unknown method {method!r}", "Known: working-set, dense")
    if chunk < 1 or max_iter < 1:
        raise SolverError(f"chunk {chunk} and max_iter {max_iter} must be at least 1")
    strong, ridge = _per_query("l1", l1, n, atoms), _per_query("l2", l2, n, atoms)
    if start is not None and (start.n_bank != n_bank or len(start) != n):
        raise SolverError(f"start is for {len(start)} queries over {start.n_bank} spots, asked {n} over {n_bank}")
    dense = method == "dense"
    half_norms, step = (atoms.square().sum(1) / 2, lipschitz(atoms)) if dense else (atoms, 0.0)
    scan = None if dense else Scan(HeldAtoms(atoms))
    for what, tensor, finite in (("dictionary", atoms, scan is not None and scan.finite), ("queries", rows, False)):
        if not finite and not bool(torch.isfinite(tensor).all()):
            raise SolverError(f"{what}: {int((~torch.isfinite(tensor)).sum())} values are not finite")
    parts = []
    for low in range(0, n, chunk):
        part = slice(low, low + chunk)
        batch = Batch(rows[part], strong[part], ridge[part], nonnegative)
        warm = None if start is None else _rows_of(start, part, atoms.device)
        if scan is None:
            found = solve_dense(
                atoms, half_norms, batch, gap=gap, max_iter=max_iter, step=step, start=warm, on_solved=on_progress
            )
        else:
            sparse = None if warm is None else Solved.of_dense(warm, strong[part], strong[part])
            found = solve_working_set(
                scan, batch, gap=gap, max_rounds=min(max_iter, MAX_ROUNDS),
                start=None if sparse is None else (sparse.index, sparse.weights), on_solved=on_progress,
            )  # fmt: skip
        parts.append(pack_codes(found, n_bank, gap))
    return join_codes(parts) if parts else empty_codes(n_bank)


def pack_codes(found: Solved, n_bank: int, gap: float) -> SparseCodes:
    """What a solver found as CSR, with the status that its gaps deserve."""
    kept = found.weights != 0
    order = torch.where(kept, found.index, n_bank).argsort(dim=1)
    kept, index, weights = (v.gather(1, order).cpu() for v in (kept, found.index, found.weights))
    gaps = found.gap.cpu().numpy().astype(np.float64)
    return SparseCodes(
        indptr=np.concatenate([[0], np.cumsum(kept.sum(1).numpy())]).astype(np.int64),
        indices=index[kept].numpy().astype(np.int32),
        weights=weights[kept].numpy(),
        n_bank=n_bank,
        gap=gaps,
        passes=found.passes.cpu().numpy(),
        status=np.where(gaps <= gap, "solved", "stalled"),
    )


def empty_codes(n_bank: int) -> SparseCodes:
    """Codes of no queries."""
    nothing = np.zeros(0)
    return SparseCodes(
        np.zeros(1, np.int64), nothing.astype(np.int32), nothing.astype(np.float32), n_bank, nothing,
        nothing.astype(np.float32), np.zeros(0, "<U7"),
    )  # fmt: skip


def _rows(what: str, array: Array, device: str | torch.device | None) -> Tensor:
    """The columns of a matrix as contiguous float32 rows."""
    if isinstance(array, np.ndarray) and array.ndim == 2:
        # numpy transposes in half the time that torch takes: it asks for large pages.
        array = torch.from_numpy(np.ascontiguousarray(array.T, np.float32)).T
    tensor = torch.as_tensor(array, dtype=torch.float32, device=device)
    if tensor.ndim != 2:
        raise SolverError(f"{what}: a matrix was expected, found shape {tuple(tensor.shape)}")
    return tensor.T.contiguous()


def _per_query(what: str, value: float | Array, n: int, like: Tensor) -> Tensor:
    tensor = torch.as_tensor(value, dtype=torch.float32).to(like.device)
    if tensor.ndim > 1 or (tensor.ndim == 1 and len(tensor) != n):
        raise SolverError(f"{what}: one value or {n} were expected, found shape {tuple(tensor.shape)}")
    if not bool(torch.isfinite(tensor).all()) or bool((tensor < 0).any()):
        raise SolverError(f"{what}: must be finite and not negative")
    return tensor.expand(n).contiguous()


def _rows_of(codes: SparseCodes, part: slice, device: torch.device) -> Tensor:
    low, high = part.start, min(part.stop, len(codes))
    inside = slice(codes.indptr[low], codes.indptr[high])
    out = torch.zeros(high - low, codes.n_bank)
    rows = np.repeat(np.arange(high - low), np.diff(codes.indptr[low : high + 1]))
    out[torch.from_numpy(rows), torch.from_numpy(codes.indices[inside].astype(np.int64))] = torch.from_numpy(
        codes.weights[inside]
    )
    return out.to(device)
