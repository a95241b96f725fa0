"""What became of a slide: a small JSON file beside its output, which is also the mark that the output is done.

The mark holds fingerprints of options and slide, and size and digest of the output; an output without a mark that fits
is made again. Does not know how a result is made.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from genrag_cli.stores.atomic import write_json

State = Literal["running", "done", "empty", "failed", "stopped"]
STATES: tuple[State, ...] = get_args(State)
"""`empty`: no spots, and an output that says so; `stopped`: on request, the same command goes on."""
FINISHED = ("done", "empty")
ENDING = ".status.json"
FORMAT = 1


@dataclass
class SlideStatus:
    """What is known about one slide's output."""

    state: State
    slide: str
    """As it was given."""
    output: str
    """Name of the output, which lies beside this file."""
    command: str = ""
    """`retrieve` or `embed`."""
    options: str = ""
    """Fingerprint of everything but the slide."""
    slide_digest: str = ""
    key: str = ""
    """Fingerprint of both."""
    source: list[int] | None = None
    """Size and time of change (ns) of the slide's file; None where it consists of several."""
    size: int = 0
    """Bytes of the output; also of the one that stands while another is made, or after that failed."""
    sha256: str = ""
    """Of that output, as it says itself; empty where it says none."""
    spots: int | None = None
    bad_tiles: int = 0
    reason: str = ""
    hint: str = ""
    attempts: int = 0
    began: str = ""
    ended: str = ""
    """ISO 8601, by the clock of the worker."""
    seconds: dict[str, float] = field(default_factory=dict)
    """By stage."""
    peak_memory: int = 0
    """Bytes that the worker, with the process that decodes, had taken at most by then."""
    worker: str = ""
    """Host and process."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What else the command says about its result."""
    warnings: list[str] = field(default_factory=list)
    format: int = FORMAT


def status_path(target: Path, kind: str = "") -> Path:
    """Where the status of an output lies: its name without the ending of its format."""
    name = target.name
    for ending in (".h5ad", ".zarr.zip", ".zarr"):
        name = name.removesuffix(ending)
    return target.with_name(f"{name}{kind}{ENDING}")


def write_status(path: Path, status: SlideStatus) -> None:
    """Writes a status in one step.

    Raises:
        OutputError: where it cannot be written.
    """
    write_json(path, dataclasses.asdict(status))


def read_status(path: Path) -> SlideStatus | None:
    """A status; None where there is none, or none that can be read, which makes its output be made again."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("state") not in STATES:
        return None
    known = {f.name: f.type for f in dataclasses.fields(SlideStatus)}
    try:
        status = SlideStatus(**{k: v for k, v in content.items() if k in known})
    except TypeError:
        return None
    tables, numbers = (status.seconds, status.facts), (status.size, status.attempts)
    sound = all(isinstance(v, dict) for v in tables) and all(isinstance(v, int) for v in numbers)
    return status if sound else None


def source_stamp(path: Path) -> list[int] | None:
    """Size and time of change of a slide of one file; None for folders and for formats of several files."""
    if not path.is_file() or path.suffix.lower() in (".mrxs", ".vms", ".vmu", ".dcm"):
        return None
    about = path.stat()
    return [about.st_size, about.st_mtime_ns]


def output_size(path: Path) -> int:
    """Bytes of a file, or of all files of a folder; 0 where there is nothing."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.exists() else 0
