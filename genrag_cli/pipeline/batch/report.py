"""One report for a run over slides: counts, failures with reasons, seconds by stage, tiles a second, memory."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genrag_cli._version import __version__
from genrag_cli.pipeline.batch.outcome import Outcome
from genrag_cli.stores.atomic import write_json

FOLDER = "runs"
STAGES = ("stage", "open", "tissue", "read", "encode", "guess", "solve", "write", "overlay")
"""In the order of the work; reading counts what was waited for."""


def make_report(
    outcomes: Sequence[Outcome], *, command: str, argv: str, elapsed_s: float, stopped: bool
) -> dict[str, Any]:
    """What a run came to, as one JSON document."""
    fresh = [o.status for o in outcomes if not o.skipped]
    seconds = Counter[str]()
    for status in fresh:
        seconds.update({k: v for k, v in status.seconds.items() if k in STAGES})
    n_tiles = sum((status.spots or 0) + status.bad_tiles for status in fresh if status.seconds.get("encode"))
    reading = seconds["read"] + seconds["encode"]
    return {
        "command": command,
        "argv": argv,
        "generag_version": __version__,
        "worker": f"{os.uname().nodename}:{os.getpid()}",
        "stopped": stopped,
        "elapsed_s": round(elapsed_s, 3),
        "counts": _count(outcomes),
        "seconds": {stage: round(seconds[stage], 3) for stage in STAGES if stage in seconds},
        "tiles": n_tiles,
        "tiles_per_s": round(n_tiles / reading, 2) if reading else None,
        "bad_tiles": sum(status.bad_tiles for status in fresh),
        "peak_memory": max((status.peak_memory for status in fresh), default=0),
        "slides": [_describe(outcome) for outcome in outcomes],
    }


def write_report(folder: Path, report: dict[str, Any], began: str) -> Path:
    """Writes a report under a name of its own, so that workers on one folder keep theirs apart.

    Raises:
        OutputError: where it cannot be written.
    """
    path = folder / FOLDER / f"{began}.{report['worker'].replace(':', '.')}.json"
    write_json(path, report)
    return path


def state_of(outcome: Outcome) -> str:
    """`done`, `empty`, `failed`, `skipped` (stood already), `held` (another worker has it), `planned` (dry run)."""
    if outcome.held_by:
        return "held"
    if outcome.status.state == "running":
        return "planned"
    return "skipped" if outcome.skipped else outcome.status.state


def _count(outcomes: Sequence[Outcome]) -> dict[str, int]:
    states = Counter(map(state_of, outcomes))
    return {state: states[state] for state in ("done", "empty", "skipped", "failed", "held", "planned")}


def _describe(outcome: Outcome) -> dict[str, Any]:
    status = outcome.status
    return {
        "slide": outcome.job.slide, "name": outcome.job.name, "state": state_of(outcome),
        "output": str(outcome.target), "spots": status.spots, "bad_tiles": status.bad_tiles,
        "reason": status.reason, "hint": status.hint, "seconds": status.seconds, "held_by": outcome.held_by,
    }  # fmt: skip
