"""Files that appear whole or not at all: write beside, flush, rename; and work that can be taken up again by parts.

This module knows bytes and names. It does not know what is in a file.
"""

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.errors import OutputError

KINDS = ("partial", "old", "packing")
"""Endings of temporary names: a file or folder in the making, a folder being replaced, a store before it is zipped."""
EPOCH = (1980, 1, 1, 0, 0, 0)
"""Every zip entry carries this date, so that equal content gives equal bytes and equal digests."""


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`; on a clean exit it is flushed to disk and renamed to `path`.

    On any failure the temporary file or folder is removed and `path` is what it was.

    Raises:
        OutputError: where the folder cannot be written or the disk is full.
    """
    temporary = beside(path, "partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path)
        remove(temporary)
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        raise explain(error, path) from error
    finally:
        remove(temporary)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """As `new_file`, for a folder that takes the place of a folder of the same name."""
    temporary, old = beside(path, "partial"), beside(path, "old")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path)
        remove(temporary)
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        if path.exists():
            path.replace(old)
        temporary.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        raise explain(error, path) from error
    finally:
        if old.exists() and not path.exists():  # stopped between the two renames
            old.replace(path)
        remove(temporary)
        remove(old)


def explain(error: OSError, path: Path) -> OutputError:
    """An OSError met while writing `path`, in words and with a remedy."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(next(p for p in (path, *path.parents) if p.exists())).free
        return OutputError(
            f"disk full while writing {path} ({free / 2**20:.0f} MiB free on that disk)",
            "Free some space or give another place (--out, --bank), then run the same command again.",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return OutputError(
            f"{path} cannot be written: {error.strerror}", "Give a place that you may write to (--out, --bank)."
        )
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return OutputError(f"{path} cannot be written: a file stands where a folder is needed", "Give another place.")
    if error.errno == errno.EISDIR:
        return OutputError(f"{path} cannot be written: a folder stands where a file is needed", "Give another place.")
    return OutputError(f"{path} could not be written: {error}", "Run the same command again; finished parts stay.")


def beside(path: Path, kind: str) -> Path:
    """Where this process keeps what is to become `path`: hidden, in the same folder, under its own number.

    Args:
        path: the final name.
        kind: one of `KINDS`.
    """
    return path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.{kind}")


def sweep(path: Path) -> None:
    """Removes what processes of this machine that are no longer alive left beside `path`."""
    for kind in KINDS:
        for left in path.parent.glob(f".{glob.escape(path.name)}.{os.uname().nodename}.*.{kind}"):
            pid = left.name.split(".")[-2]
            if pid.isdigit() and int(pid) != os.getpid() and not _is_alive(int(pid)):
                remove(left)


def tidy(path: Path) -> None:
    """Removes what unfinished runs left of an output that stands: temporary files, and parts nobody will take up."""
    sweep(path)
    for what in ("parts", "codes", "guess"):
        remove(path.with_name(f".{path.name}.{what}"))


def remove(path: Path) -> None:
    """Removes a file or folder if it is there and may be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replaces `path` by this content in one step."""
    with new_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def pack_folder(folder: Path, path: Path) -> None:
    """Packs a folder into an uncompressed zip, names sorted and dates fixed: equal content gives equal bytes."""
    with new_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            entry = zipfile.ZipInfo(file.relative_to(folder).as_posix(), EPOCH)
            with archive.open(entry, "w", force_zip64=True) as sink, file.open("rb") as source:
                shutil.copyfileobj(source, sink, 1 << 20)


def digest_file(path: Path) -> str:
    """Sha256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


class Parts:
    """A folder of numbered parts of unfinished work beside its output; a rerun with equal options takes them up.

    Args:
        output: the file that the parts will become.
        key: fingerprint of everything that the parts depend on; parts of another key are thrown away.
    """

    def __init__(self, output: Path, key: str, what: str) -> None:
        self.folder = output.with_name(f".{output.name}.{what}")
        self.key = key
        marker = self.folder / "key"
        if self.folder.exists() and (not marker.exists() or marker.read_text() != key):
            remove(self.folder)
            if self.folder.exists():
                raise OutputError(f"{self.folder} is of other options and cannot be removed", "Remove it yourself.")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not marker.exists():
                with new_file(marker) as temporary:
                    temporary.write_text(key)
        except OSError as error:
            raise explain(error, self.folder) from error

    def has(self, number: int) -> bool:
        """Whether this part is finished."""
        return self._path(number).exists()

    def read(self, number: int) -> dict[str, NDArray[Any]]:
        """The arrays of a finished part."""
        with np.load(self._path(number), allow_pickle=False) as content:
            return {name: content[name] for name in content.files}

    def write(self, number: int, **arrays: NDArray[Any]) -> None:
        """Finishes a part."""
        with new_file(self._path(number)) as temporary, temporary.open("wb") as sink:
            np.savez(sink, **arrays)  # type: ignore[arg-type]  # its stub takes allow_pickle for one of the arrays

    def clear(self) -> None:
        """Throws the parts away, once the output stands."""
        remove(self.folder)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npz"


@contextlib.contextmanager
def writer_lock(folder: Path, refuse: type[Exception]) -> Iterator[None]:
    """Holds a folder for one writer; the operating system lets go of it when the process ends, however it ends.

    Raises:
        refuse: built with (message, hint), where another process holds it.
    """
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / ".writer.lock").open("a+b", buffering=0)
    except OSError as error:
        raise explain(error, folder) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            handle.seek(0)
            holder = handle.read().decode(errors="replace").strip() or "another process"
            raise refuse(
                f"{folder} is being written by {holder}", "Wait for it to end, or write to another bank (--bank)."
            ) from error
        except OSError as error:
            raise explain(error, folder) from error
        note = f"process {os.getpid()} on {os.uname().nodename} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
        with contextlib.suppress(OSError):  # the note serves the message of whoever is refused; a full disk may eat it
            handle.truncate(0)
            handle.write(note.encode())
        yield


def lock_is_held(folder: Path) -> bool:
    """Whether some process is writing this folder now."""
    import fcntl

    lock = folder / ".writer.lock"
    if not lock.exists():
        return False
    try:
        with lock.open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except OSError:
        return True


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # there, and not ours
        return True
    return True


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
