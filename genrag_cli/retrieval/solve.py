"""The library's front door: any dictionary, any queries, numpy or torch in, `SparseCodes` out."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genrag_cli.errors import SolverError
from genrag_cli.retrieval.atoms import Atoms, HeldAtoms, writable
from genrag_cli.retrieval.fista import lipschitz, solve_dense
from genrag_cli.retrieval.memory import chunk_for, ran_out
from genrag_cli.retrieval.problem import Batch, Solved
from genrag_cli.retrieval.scan import Scan
from genrag_cli.retrieval.working_set import WIDEST, solve_working_set
from genrag_cli.types import SparseCodes, join_codes

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Array = NDArray[Any] | Tensor
MAX_ROUNDS = 60
TIGHTEST_GAP = 1e-7
"""float32 weights cannot promise less."""
SMALLEST_ATOM = 1e-16


def solve(
    dictionary: Array | Scan,
    queries: Array,
    *,
    l1: float | Array,
    l2: float | Array,
    nonnegative: bool = True,
    gap: float = 1e-4,
    method: Literal["working-set", "dense"] = "working-set",
    chunk: int | None = None,
    max_iter: int = 20_000,
    device: str | torch.device | None = None,
    start: SparseCodes | None = None,
    on_progress: Callable[[int], None] = lambda _: None,
) -> SparseCodes:
    """Minimises 1/2 |b - D a|^2 + l1 |a|_1 + l2/2 |a|^2 for every column b of `queries`.

    Args:
        dictionary: D, (m, N) float32, one column per bank spot; or what `prepare` made of one.
        queries: (m, n) float32; one column per query.
        l1: one value or one per query, >= 0.
        l2: one value or one per query, >= 0.
        nonnegative: a >= 0 (the default) or signed.
        gap: relative duality gap (P - dual) / P that every query must reach by itself; 1e-7 is the tightest.
        method: `working-set` looks at the whole bank only to certify; `dense` is FISTA over all of it, the oracle.
        chunk: queries solved side by side; as many as fit well when not given, fewer when memory runs out all the
            same. The result does not depend on it.
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
    scan = dictionary if isinstance(dictionary, Scan) else prepare(dictionary, device=device)
    rows = _rows("queries", queries, scan.atoms.device)
    if rows.shape[1] != scan.atoms.m:
        raise SolverError(f"dictionary has {scan.atoms.m} rows, queries have {rows.shape[1]}; they must be equal")
    if not bool(torch.isfinite(rows).all()):
        raise SolverError(f"queries: {int((~torch.isfinite(rows)).sum())} values are not finite")
    if not TIGHTEST_GAP <= gap < 1:
        raise SolverError(f"gap {gap:g} asked; {TIGHTEST_GAP:g} <= gap < 1 is possible with float32 weights")
    if method not in ("working-set", "dense"):
        raise SolverError(f"unknown method {method!r}", "Known: working-set, dense")
    if (chunk is not None and chunk < 1) or max_iter < 1:
        raise SolverError(f"chunk {chunk} and max_iter {max_iter} must be at least 1")
    n = len(rows)
    batch = Batch(rows, _per_query("l1", l1, n, rows), _per_query("l2", l2, n, rows), nonnegative)
    if start is not None and (start.n_bank != scan.n or len(start) != n):
        raise SolverError(f"start is for {len(start)} queries over {start.n_bank} spots, asked {n} over {scan.n}")
    if start is not None and nonnegative:
        start = replace(start, weights=np.maximum(start.weights, 0))
    work = _dense(scan, gap, max_iter) if method == "dense" else _sets(scan, batch, gap, max_iter)

    def one(part: slice, tell: Callable[[int], None]) -> SparseCodes:
        warm = None if start is None else start.rows(part)
        return pack_codes(work(batch.rows(torch.arange(part.start, part.stop)), warm, tell), scan.n, gap)

    parts = list(_in_chunks(n, chunk or scan.least(chunk_for(scan.atoms)), one, on_progress))
    return join_codes(parts) if parts else empty_codes(scan.n)


def prepare(
    dictionary: Array | Atoms, *, device: str | torch.device | None = None, group: "ProcessGroup | None" = None
) -> Scan:
    """Makes a dictionary ready to be solved over many times: norms, a sub-bank, a low-precision copy.

    Args:
        dictionary: D, (m, N) float32, one column per bank spot; or `Atoms`, which may be read from elsewhere.
        device: where to compute; the dictionary's own device, else the CPU.
        group: ranks over which the columns are spread. Each rank gives its own columns, then solves all queries, and
            gets all codes, over the columns in the order of ranks.

    Raises:
        SolverError: for a dictionary that is no matrix, empty or not finite.
    """
    if isinstance(dictionary, np.ndarray | Tensor):
        atoms: Atoms = HeldAtoms(_rows("dictionary", dictionary, device))
    else:
        atoms = dictionary
    if atoms.n == 0:
        raise SolverError("the dictionary has no columns: nothing to retrieve from")
    if group is None:
        scan = Scan(atoms)
    else:
        from genrag_cli.retrieval.ranks import SpreadScan

        scan = SpreadScan(atoms, group)
    if not scan.finite:
        wrong = sum(int((~torch.isfinite(block)).sum()) for _, block in atoms.blocks(4096))
        if wrong == 0 and group is None:
            raise SolverError(
                "dictionary: values are so large that their squares overflow float32", "Scale dictionary and queries."
            )
        raise SolverError(f"dictionary: {wrong} values are not finite")
    if 0 < scan.largest < SMALLEST_ATOM:
        raise SolverError(
            f"dictionary: its columns are so short ({scan.largest:.1e} at most) that their squares vanish in float32",
            "Scale dictionary and queries.",
        )
    return scan


Work = Callable[[Batch, SparseCodes | None, Callable[[int], None]], Solved]


def _sets(scan: Scan, batch: Batch, gap: float, max_iter: int) -> Work:
    """Working sets."""
    if not batch.nonnegative and scan.n > WIDEST and bool((batch.l1 == 0).any()):
        raise SolverError(
            f"l1 is 0 and weights are signed: all {scan.n} bank spots would get one, which is no retrieval",
            "Give l1 > 0 or weights >= 0; method 'dense' solves it all the same.",
        )

    def work(some: Batch, start: SparseCodes | None, tell: Callable[[int], None]) -> Solved:
        warm = None if start is None else _on(some.b.device, *start.padded())
        return solve_working_set(
            scan, some, gap=gap, max_rounds=min(max_iter, MAX_ROUNDS), start=warm, on_solved=tell
        )  # fmt: skip

    return work


def _dense(scan: Scan, gap: float, max_iter: int) -> Work:
    """FISTA over the whole dictionary, which must be in this process's memory."""
    if not isinstance(scan.atoms, HeldAtoms) or scan.n != scan.atoms.n:
        raise SolverError(
            "the dense solver needs the whole dictionary in memory", "Use the working-set solver for larger banks."
        )
    atoms = scan.atoms.rows
    half_norms, step = atoms.square().sum(1) / 2, lipschitz(atoms)

    def work(some: Batch, start: SparseCodes | None, tell: Callable[[int], None]) -> Solved:
        warm = None if start is None else torch.from_numpy(start.dense()).to(atoms)
        return solve_dense(
            atoms, half_norms, some, gap=gap, max_iter=max_iter, step=step, start=warm, on_solved=tell
        )  # fmt: skip

    return work


def _in_chunks(
    n: int, chunk: int, one: Callable[[slice, Callable[[int], None]], SparseCodes], on_progress: Callable[[int], None]
) -> Iterator[SparseCodes]:
    """Some queries at a time; half as many where memory runs out."""
    low = told = solved = 0

    def tell(more: int) -> None:
        nonlocal told, solved
        solved += more
        if solved > told:
            on_progress(solved - told)
            told = solved

    while low < n:
        solved = low
        part = slice(low, min(low + chunk, n))
        try:
            codes = one(part, tell)
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            if chunk == 1:
                raise SolverError("memory ran out with one query at a time", "Give the job more memory.") from error
            chunk = max(1, chunk // 2)
            continue
        yield codes
        low = part.stop


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
        passes=found.passes.float().cpu().numpy(),
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
        array = torch.from_numpy(writable(np.ascontiguousarray(array.T, np.float32))).T
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


def _on(device: torch.device, index: NDArray[np.int64], weights: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(index).to(device), torch.from_numpy(weights).to(device)
