"""How many queries fit beside each other: free memory, and what to do when it runs out."""

from pathlib import Path

import torch

from genrag_cli.retrieval.atoms import Atoms, HeldAtoms
from genrag_cli.retrieval.scan import COLUMNS

SHARE = 0.25
"""Of free memory that one chunk of queries may take."""
POOL_WIDTH = 1024
"""Atoms of a query's pool that room is made for."""
SMALLEST, LARGEST = 32, 1024
LARGEST_ON_GPU = 8192


def free_bytes(device: torch.device) -> int:
    """Memory that can still be had: of the card, or of this machine and this job's control group."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    found = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        if limit.isdigit():
            # Files in the page cache count as used there, and give way when memory is asked for.
            lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
            cached = sum(int(line.split()[1]) for line in lines if line.startswith(("inactive_file", "active_file")))
            used = int((group / "memory.current").read_text(encoding="ascii"))
            found.append(int(limit) - used + cached)
    except (OSError, ValueError):
        pass
    return max(0, min(found, default=4 << 30))


def chunk_for(atoms: Atoms) -> int:
    """Queries to solve side by side; the codes do not depend on it."""
    most = LARGEST_ON_GPU if atoms.device.type == "cuda" else LARGEST
    return int(max(SMALLEST, min(most, SHARE * free_bytes(atoms.device) / _query_bytes(atoms))))


def chunk_bytes(atoms: Atoms, n: int) -> int:
    """Memory that room is made for when n queries are solved: of as many as go side by side."""
    return min(n, chunk_for(atoms)) * _query_bytes(atoms)


def _query_bytes(atoms: Atoms) -> int:
    gathered = 0 if isinstance(atoms, HeldAtoms) else POOL_WIDTH * atoms.m * 4
    return COLUMNS * 10 + atoms.m * 48 + POOL_WIDTH * 48 + gathered


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the card or here."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)
