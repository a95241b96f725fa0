"""Claims: which of several workers, on one machine or many, works on an output just now.

A claim is a file beside the output, made with exclusive create, which is atomic on local and network file systems. Its
owner writes a growing count into it while it works; a claim whose count stands still for a whole lease, by the clock of
whoever looks, belongs to nobody any more. No two clocks are ever compared. Does not know what is worked on.
"""

import contextlib
import glob
import json
import os
import threading
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from genrag_cli.errors import OutputError
from genrag_cli.stores.atomic import explain, is_alive

LEASE_S = 120.0
RENEWALS = 4
"""In a lease."""


class ClaimLostError(OutputError):
    """Another worker has taken over what this one worked on, because it did not hear of it for a whole lease."""


@dataclass
class Claim:
    """A claim that this process holds; renewed by a thread of its own until it is released."""

    path: Path
    nonce: str
    lease_s: float
    lost: bool = False
    _ended: threading.Event = field(default_factory=threading.Event)
    _count: int = 0

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._renew, name=f"claim {self.path.name}", daemon=True)
        self._thread.start()

    def expect_held(self) -> None:
        """Refuses to go on with what is another's by now.

        Raises:
            ClaimLostError: where the claim was taken over.
        """
        if self.lost or not self._is_ours():
            self.lost = True
            raise ClaimLostError(
                f"{self.path}: another worker has taken this over, having heard nothing for {self.lease_s:g} s",
                "Was this process suspended? --lease says how long others wait.",
            )

    def release(self) -> None:
        """Lets others have it."""
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            if self._is_ours():
                self.path.unlink()
                for left in self.path.parent.glob(f"{glob.escape(self.path.name)}.*"):  # of who died while taking over
                    left.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _renew(self) -> None:
        while not self._ended.wait(self.lease_s / RENEWALS):
            self._count += 1
            try:
                with self.path.open("r+b") as file:  # never makes the file anew: it may be another's by now
                    if json.loads(file.read() or b"{}").get("nonce") != self.nonce:
                        self.lost = True
                        return
                    file.seek(0)
                    file.write(_content(self.nonce, self._count))
                    file.truncate()
                    file.flush()
                    os.fsync(file.fileno())
            except FileNotFoundError:
                self.lost = True
                return
            except (OSError, ValueError):  # a server that is away for a while; the next renewal may succeed
                continue

    def _is_ours(self) -> bool:
        content = read_claim(self.path)
        return content is not None and content.get("nonce") == self.nonce


@dataclass
class _Seen:
    """What a watcher saw last of another's claim."""

    text: str
    since: float


class Claims:
    """Takes claims for one worker, and watches those of others.

    Args:
        lease_s: seconds without a sign of life after which a claim of another expires.
    """

    def __init__(self, lease_s: float = LEASE_S) -> None:
        self.lease_s = lease_s
        self._seen: dict[Path, _Seen] = {}

    def take(self, target: Path) -> Claim | None:
        """Claims an output; None where another worker has it.

        Raises:
            OutputError: where nothing can be written there.
        """
        path = claim_path(target)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not (self._is_dead(path) and _remove(path, self._seen[path].text)):
                return None
            nonce = uuid.uuid4().hex
            try:
                handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            except FileExistsError:
                return None
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(_content(nonce, 0))
                    file.flush()
                    os.fsync(file.fileno())
            except OSError:  # a full disk; nobody is to wait for a claim that nobody holds
                path.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise explain(error, path) from error
        self._seen.pop(path, None)
        return Claim(path, nonce, self.lease_s)

    def holder(self, target: Path) -> str:
        """Who has an output, in words."""
        content = read_claim(claim_path(target)) or {}
        return f"process {content.get('pid', '?')} on {content.get('host', 'another machine')}"

    def _is_dead(self, path: Path) -> bool:
        """Whether a claim's owner is gone: its process, on this machine, or its sign of life for a whole lease."""
        text = _read(path)
        seen = self._seen.get(path)
        if seen is None or seen.text != text:
            seen = self._seen[path] = _Seen(text, time.monotonic())
        if _has_ended(read_claim(path) or {}):
            return True
        return time.monotonic() - seen.since > self.lease_s


def claim_path(target: Path) -> Path:
    """Where the claim of an output lies."""
    return target.with_name(f".{target.name}.claim")


def is_held(target: Path) -> bool:
    """Whether a worker seems to have an output: it has a claim, and is not a process of this machine that is gone."""
    content = read_claim(claim_path(target))
    return content is not None and not _has_ended(content)


def read_claim(path: Path) -> dict[str, Any] | None:
    """What stands in a claim; None where there is none, an empty one where it is being written."""
    try:
        content = json.loads(path.read_text() or "{}")
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _has_ended(content: dict[str, Any]) -> bool:
    """Whether the owner of a claim is a process of this machine that is gone."""
    pid = content.get("pid")
    return isinstance(pid, int) and content.get("boot") == _boot() != "" and not is_alive(pid)


def _remove(path: Path, text: str) -> bool:
    """Removes a dead claim; of several who try, one succeeds, and a claim that came to life again is put back."""
    away = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        path.rename(away)
    except FileNotFoundError:
        return True
    dead = _read(away) == text
    if not dead:
        with contextlib.suppress(OSError):
            os.link(away, path)
    away.unlink(missing_ok=True)
    return dead


def _read(path: Path) -> str:
    """What a watcher sees of a claim: its text; of one that may not be read, when it was renewed last."""
    try:
        return path.read_text()
    except PermissionError:
        return str(path.stat().st_mtime_ns)
    except OSError:
        return ""


def _content(nonce: str, count: int) -> bytes:
    about = {"nonce": nonce, "count": count, "pid": os.getpid(), "host": os.uname().nodename, "boot": _boot()}
    return json.dumps(about).encode()


def _boot() -> str:
    """This start of this machine, and of this container, so that a number of a process means something."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""
