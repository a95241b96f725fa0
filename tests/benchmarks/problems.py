#!/usr/bin/env python3
"""Where the problems of `solver.py` come from: the shared tool in memory, the same on disk, or a file.

    python tests/benchmarks/problems.py FOLDER --n 1000000 --variant std [--seed 0]

The tool holds several copies of its bank at once: more than 20 GB for a million spots. `write` makes the same bank and
the same queries bit for bit, but section by section, straight into a Zarr store: the tool's own pieces, the same random
numbers in the same order, and sums over the bank in float32 from the first spot to the last, as numpy takes them. What
is solved over a problem, and how, this module does not know.
"""

import argparse
import hashlib
import importlib.util
import json
import mmap
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from setting import REPOSITORY

Floats = NDArray[np.float32]
TOOL = REPOSITORY.parent / "shared" / "tools" / "solver_problems.py"
VARIANTS = ("raw", "l2", "std")
ROWS = 8192
"""Bank spots of a chunk (43 MB)."""
HEAD, RIDGE, OMEGA, FAINT = 10_000, 300, 0.75, 1e-6
"""The tool's: spots that its head is fitted on, the ridge, the weight of embeddings, what is added to a sd."""


def load_tool() -> ModuleType:
    """The shared tool."""
    spec = importlib.util.spec_from_file_location("solver_problems", TOOL)
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def make(n: int, variant: str, seed: int) -> dict[str, Any]:
    """A problem of the shared tool, in memory: dictionary (m, n), queries (m, Q)."""
    dictionary, queries = load_tool().problem(n, variant, seed)
    return {"dictionary": dictionary, "queries": queries}


def load(path: Path) -> dict[str, Any]:
    """A problem in an npz file, with penalties where it has some."""
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


class Bank:
    """A bank on disk: (N, m) float32 in a Zarr array, rows by slices.

    A chunk that is not compressed is a file of plain numbers. `mapped` maps it, which copies nothing; without, zarr
    reads it, which takes two copies and more time than a product with a few hundred queries does.

    Args:
        path: of the array.
        mapped: how it is read.
    """

    def __init__(self, path: Path, mapped: bool) -> None:
        import zarr

        self._path, self._array, self._mapped = path, zarr.open_array(path, mode="r"), mapped
        self.shape: tuple[int, int] = self._array.shape
        if mapped and not np.array_equal(self[:1], self._array[:1]):
            raise ValueError(f"{path}: the chunks are not plain rows of float32")

    def __getitem__(self, rows: slice) -> Floats:
        low, high, _ = rows.indices(self.shape[0])
        chunk = self._array.chunks[0]
        first = low // chunk * chunk
        if not self._mapped or high > first + chunk:
            return self._array[low:high]
        # Private and writable: nobody writes, but torch complains about numbers that it could not write to.
        file = np.memmap(self._path / "c" / str(low // chunk) / "0", np.float32, "c", shape=(chunk, self.shape[1]))
        file._mmap.madvise(mmap.MADV_WILLNEED)
        return np.asarray(file[low - first : high - first])


@contextmanager
def stored(
    n: int, variant: str, seed: int, scratch: Path | None, keep: bool, mapped: bool = True
) -> Iterator[tuple[Bank, Floats]]:
    """A problem on disk: the bank (n, m), and queries (Q, m) in memory.

    It is made in a process of its own, so that what that takes does not count as the solver's, unless it is there and
    whole. What was made is removed afterwards unless it is to be kept; what was found stays.

    Args:
        n: bank spots.
        variant: the space.
        seed: of the tool.
        scratch: folder for problems; None takes a temporary one.
        keep: leave it there.
        mapped: how the bank is read.
    """
    parent = scratch or Path(tempfile.mkdtemp(prefix="solver-problems-"))
    folder = parent / f"{variant}-{n}-{seed}"
    found = is_whole(folder, n, variant, seed)
    try:
        if not found:
            command = [sys.executable, __file__, folder, "--n", n, "--variant", variant, "--seed", seed]
            subprocess.run(list(map(str, command)), check=True, stdout=sys.stderr)
        print(f"{folder}: {'was there' if found else 'made'}", file=sys.stderr, flush=True)
        yield Bank(folder / "bank.zarr", mapped), np.load(folder / "queries.npy")
    finally:
        if not found and not keep:
            shutil.rmtree(folder if scratch else parent, ignore_errors=True)


def identity(n: int, variant: str, seed: int) -> dict[str, Any]:
    """What decides every bit of a problem; its file is written last."""
    return {"n": n, "variant": variant, "seed": seed, "tool": hashlib.sha256(TOOL.read_bytes()).hexdigest()}


def is_whole(folder: Path, n: int, variant: str, seed: int) -> bool:
    """Whether a problem is there, and all of it."""
    try:
        return bool(json.loads((folder / "problem.json").read_text()) == identity(n, variant, seed))
    except (OSError, ValueError):
        return False


def write(folder: Path, n: int, variant: str, seed: int, say: Callable[[str], None] = lambda _: None) -> None:
    """Writes one problem.

    Args:
        folder: gets bank.zarr, queries.npy (Q, m) and problem.json; replaced where it is there.
        n: bank spots.
        variant: raw, l2 or std.
        seed: of the tool.
        say: told how far it is.
    """
    import zarr

    tool = load_tool()
    make_sections, queries_of, d, m = plan(tool, n, seed)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    free, needed = shutil.disk_usage(folder).free, -(-n // ROWS) * min(n, ROWS) * m * 4
    if free < 1.05 * needed:
        sys.exit(f"{folder}: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free")
    chunk = (min(n, ROWS), m)
    bank = zarr.create_array(folder / "bank.zarr", shape=(n, m), chunks=chunk, dtype="float32", compressors=None)
    bounds = [(low, min(low + ROWS, n)) for low in range(0, n, ROWS)]

    total = None
    for low, rows in in_blocks(make_sections(), n):
        bank[low : low + len(rows)] = rows
        total = add_rows(total, rows)
        if low // ROWS % 10 == 9:
            say(f"  {low + len(rows)} of {n} spots made")
    f, y = queries_of(bank[:HEAD])
    mean, sd = total / n, None
    if variant == "std":
        total = None
        for low, high in bounds:
            total = add_rows(total, np.square(bank[low:high] - mean))
        sd = np.sqrt(total / n)

    def place(f: Floats, y: Floats) -> Floats:
        """Rows in the space asked for, as the tool has them."""
        blocks = [f, y]
        if variant == "l2":
            blocks = [a / np.linalg.norm(a, axis=1, keepdims=True) for a in blocks]
        elif variant == "std":
            of = slice(None, d), slice(d, None)
            blocks = [(a - mean[at]) / (sd[at] + FAINT) / np.sqrt(a.shape[1]) for a, at in zip(blocks, of, strict=True)]
        w = np.sqrt([OMEGA, 1 - OMEGA])
        return np.concatenate([w[0] * blocks[0], w[1] * blocks[1]], 1).astype(np.float32)

    for low, high in bounds:
        rows = bank[low:high]
        bank[low:high] = place(np.ascontiguousarray(rows[:, :d]), np.ascontiguousarray(rows[:, d:]))
    queries = place(f, y)
    np.save(folder / "queries.npy", queries[np.random.default_rng(seed + 1).permutation(len(queries))])
    (folder / "problem.json").write_text(json.dumps(identity(n, variant, seed)))


def plan(
    tool: ModuleType, n: int, seed: int
) -> tuple[Callable[[], Iterator[Floats]], Callable[[Floats], tuple[Floats, Floats]], int, int]:
    """The tool's steps as two pieces that share a generator of random numbers and must be used up in this order.

    Returns:
        Sections of at least n spots in all, as rows of embedding and anchors; queries from the head's rows: embeddings
        and anchors; width of an embedding, and of a row.
    """
    import anndata

    table = anndata.read_h5ad(tool.DATA)
    table = table[table.obs["total_counts"] > 100]
    section = table.obs["section"].astype(str).to_numpy()
    totals = table.obs["total_counts"].to_numpy(float)
    xy, counts = np.asarray(table.obsm["array_xy"], float), table.X.toarray()
    bank = ~np.isin(section, tool.HELD)
    counts = counts[:, np.argsort(-tool.log1p_cpm(counts[bank], totals[bank]).var(0))[: tool.K]]
    expr = tool.log1p_cpm(counts, totals)
    rng = np.random.default_rng(seed)
    embed = tool.Embedder(expr[bank], rng)
    names = sorted(set(section[bank]))

    def sections() -> Iterator[Floats]:
        made = copy = 0
        while made < n:
            for name in names:
                if made >= n:
                    break
                rows = np.flatnonzero(section == name)
                own = expr[rows]
                if copy:
                    near = np.argsort(((xy[rows, None] - xy[rows][None]) ** 2).sum(-1), 1)[:, 1:6]
                    pick = rows[near[np.arange(len(rows)), rng.integers(0, 5, len(rows))]]
                    drawn = rng.poisson(0.6 * counts[rows] + 0.4 * counts[pick]).astype(np.float32)
                    own = tool.log1p_cpm(drawn, 0.6 * totals[rows] + 0.4 * totals[pick])
                made += len(rows)
                yield np.concatenate([embed(own, xy[rows], rng), own], 1)
            copy += 1

    def queries(head: Floats) -> tuple[Floats, Floats]:
        q = np.concatenate([embed(expr[section == s], xy[section == s], rng) for s in tool.QUERY])
        f, y = (np.ascontiguousarray(part).astype(float) for part in (head[:, : tool.D], head[:, tool.D :]))
        centred = f - f.mean(0)
        fitted = np.linalg.solve(centred.T @ centred + RIDGE * np.eye(tool.D), centred.T @ (y - y.mean(0)))
        return q, np.maximum((q - f.mean(0)) @ fitted + y.mean(0), 0).astype(np.float32)

    return sections, queries, tool.D, tool.D + tool.K


def in_blocks(parts: Iterator[Floats], n: int) -> Iterator[tuple[int, Floats]]:
    """The first n rows of some tables, as many at a time as a chunk has; all tables are taken."""
    low, waiting, held = 0, [], 0
    for part in parts:
        waiting.append(part)
        held += len(part)
        while held >= ROWS and low + ROWS <= n:
            rows = np.concatenate(waiting)
            yield low, rows[:ROWS]
            low, waiting, held = low + ROWS, [rows[ROWS:]], held - ROWS
    if low < n:
        yield low, np.concatenate(waiting)[: n - low]


def add_rows(total: Floats | None, rows: Floats) -> Floats:
    """Rows added to a total one after the other, in float32: what a sum over all of them at once gives."""
    return np.add.reduce(rows if total is None else np.concatenate([total[None], rows]), axis=0)


def main() -> None:
    """Writes one problem to disk."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--n", type=int, default=1_000_000)
    parser.add_argument("--variant", choices=VARIANTS, default="std")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    write(asked.folder, asked.n, asked.variant, asked.seed, lambda text: print(text, flush=True))


if __name__ == "__main__":
    main()
