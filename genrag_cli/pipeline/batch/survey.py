"""What stands in a folder of results: the status of every slide, whoever worked on it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genrag_cli.errors import OutputError
from genrag_cli.pipeline.batch.outcome import stands
from genrag_cli.stores.claims import is_held
from genrag_cli.stores.status import ENDING, FINISHED, SlideStatus, read_status

STATES = ("done", "empty", "running", "interrupted", "stopped", "failed", "gone", "unreadable")
"""Beside those of a status: `interrupted`, its worker is gone; `gone`, the output was removed or is of another size;
`unreadable`, the status itself is damaged. All but the first three are taken up by running the command again."""


@dataclass(frozen=True)
class Standing:
    """A slide's status as it is now."""

    path: Path
    state: str
    status: SlideStatus | None


def survey_statuses(folder: Path) -> list[Standing]:
    """Every status in a folder and below, by path.

    Raises:
        OutputError: where there is no such folder, or no status in it.
    """
    if not folder.is_dir():
        raise OutputError(f"{folder}: no such folder", "Give the folder that --out named.")
    # What another worker is writing or removing just now may be gone by the time it is read.
    paths = sorted(p for p in folder.rglob(f"*{ENDING}") if not p.name.startswith("."))
    if not paths:
        raise OutputError(
            f"{folder}: no status of a slide in it", "`generag retrieve` and `embed` write one beside each result."
        )
    return [_look(path) for path in paths if path.exists()]


def count_states(found: Sequence[Standing]) -> dict[str, int]:
    """How many slides are in each state."""
    states = Counter(one.state for one in found)
    return {state: states[state] for state in STATES}


def describe(one: Standing) -> dict[str, Any]:
    """One slide, as JSON."""
    status = one.status
    if status is None:
        return {"status": str(one.path), "state": one.state}
    return {
        "status": str(one.path), "state": one.state, "slide": status.slide, "command": status.command,
        "output": str(one.path.parent / status.output), "spots": status.spots, "bad_tiles": status.bad_tiles,
        "attempts": status.attempts, "worker": status.worker, "began": status.began, "ended": status.ended,
        "seconds": status.seconds, "peak_memory": status.peak_memory, "reason": status.reason, "hint": status.hint,
        "warnings": status.warnings,
    }  # fmt: skip


def _look(path: Path) -> Standing:
    status = read_status(path)
    if status is None:
        return Standing(path, "unreadable", None)
    target = path.parent / status.output
    if status.state == "running":
        return Standing(path, "running" if is_held(target) else "interrupted", status)
    if status.state in FINISHED and not stands(target, status):
        return Standing(path, "gone", status)
    return Standing(path, status.state, status)
