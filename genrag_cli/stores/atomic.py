"""Files that appear whole or not at all: write beside, flush, rename; and work that can be taken up again by parts.

This module knows bytes and names. It does not know what is in a file; digests that travel with it are `seal.py`'s.
"""

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.errors import OutputError
from genrag_cli.stores.seal import ROOM, THREADS, seal_file, seal_folder

KINDS = ("partial", "old", "packing")
"""Endings of temporary names: a file or folder in the making, a folder being replaced, a store before it is zipped."""
EPOCH = (1980, 1, 1, 0, 0, 0)
"""Every zip entry carries this date, so that equal content gives equal bytes and equal digests."""
FOREIGN_AGE_S = 2 * 86_400.0
"""What another machine left and has not touched for so long is a dead process's: who lives writes, or is done."""
LONGEST_NAME = 80
"""Bytes of a file's name within temporary names, which are longer; file systems allow 255, some 143."""


@contextlib.contextmanager
def new_file(path: Path, *, sealed: bool = False) -> Iterator[Path]:
    """Gives a temporary path beside `path`; on a clean exit it is flushed to disk and renamed to `path`.

    On any failure the temporary file or folder is removed and `path` is what it was.

    Args:
        path: what it becomes.
        sealed: a digest is appended to it (`seal.seal_file`).

    Raises:
        OutputError: where the folder cannot be written or the disk is full.
    """
    temporary = beside(path, "partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path)
        remove(temporary)
        yield temporary
        if sealed:
            seal_file(temporary)
        _flush_file(temporary)
        temporary.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        raise explain(error, path) from error
    finally:
        remove(temporary)


@contextlib.contextmanager
def new_folder(path: Path, *, sealed: bool = False) -> Iterator[Path]:
    """As `new_file`, for a folder that takes the place of a folder of the same name; sealed by `seal.seal_folder`."""
    temporary, old = beside(path, "partial"), beside(path, "old")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path)
        remove(temporary)
        temporary.mkdir()
        yield temporary
        if sealed:
            seal_folder(temporary)
        inside = list(temporary.rglob("*"))
        with ThreadPoolExecutor(THREADS) as pool:  # a file system flushes several at once
            list(pool.map(_flush_file, (p for p in inside if p.is_file())))
        for folder in (*(p for p in inside if p.is_dir()), temporary):
            _flush_folder(folder)
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


_PLACE = "Give another place (--out, --bank)."
_REFUSED = {
    errno.EACCES: ("you may not write there", "Give a place that you may write to (--out, --bank)."),
    errno.EPERM: ("the system does not permit it", "Give a place that you may write to (--out, --bank)."),
    errno.EROFS: ("the file system is read-only", "Give a place that you may write to (--out, --bank)."),
    errno.EEXIST: ("a file stands where a folder is needed", _PLACE),
    errno.ENOTDIR: ("a file stands where a folder is needed", _PLACE),
    errno.EISDIR: ("a folder stands where a file is needed", _PLACE),
    errno.ENAMETOOLONG: ("its name is too long for the file system", "Give a shorter name (--out, --bank)."),
    errno.EFBIG: ("the file system, or `ulimit -f`, allows no file as large", _PLACE),
}


def explain(error: OSError, path: Path) -> OutputError:
    """An OSError met while writing `path`, in words and with a remedy."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(next(p for p in path.absolute().parents if _is_there(p))).free
        return OutputError(
            f"disk full while writing {path} ({free / 2**20:.0f} MiB free on that disk)",
            "Free some space or give another place (--out, --bank), then run the same command again.",
        )
    if error.errno in _REFUSED:
        reason, hint = _REFUSED[error.errno]
        return OutputError(f"{path} cannot be written: {reason}", hint)
    return OutputError(f"{path} could not be written: {error}", "Run the same command again; finished parts stay.")


def _is_there(folder: Path) -> bool:
    with contextlib.suppress(OSError):  # its name may be what is wrong
        return folder.is_dir()
    return False


def beside(path: Path, kind: str) -> Path:
    """Where this process keeps what is to become `path`: hidden, in the same folder, under its own number.

    Args:
        path: the final name.
        kind: one of `KINDS`.
    """
    return _hidden(path, f"{os.uname().nodename}.{os.getpid()}.{kind}")


def _hidden(path: Path, ending: str) -> Path:
    """A hidden name beside `path`; the name of the file in it is cut where it is long, and told apart by a digest."""
    word = path.name
    if len(word.encode()) > LONGEST_NAME:
        kept = word.encode()[: LONGEST_NAME - 9].decode(errors="ignore")
        word = f"{kept}~{hashlib.sha256(word.encode()).hexdigest()[:8]}"
    return path.with_name(f".{word}.{ending}")


def sweep(path: Path) -> None:
    """Removes what dead processes left beside `path`, and puts back a folder that one had put aside.

    Of this machine's processes those that are not alive are dead; of others' those that touched nothing for
    `FOREIGN_AGE_S`, by the clock of the file system.
    """
    host = os.uname().nodename
    start = _hidden(path, "").name
    for left in path.parent.glob(f"{glob.escape(start)}*"):
        node, _, rest = left.name.removeprefix(start).rpartition(".")[0].rpartition(".")
        if left.suffix[1:] not in KINDS or not node or not rest.isdigit():
            continue
        dead = not (int(rest) == os.getpid() or is_alive(int(rest))) if node == host else _is_abandoned(left)
        if dead and left.suffix == ".old" and not path.exists():
            left.replace(path)
        elif dead:
            remove(left)


def _is_abandoned(left: Path) -> bool:
    """Whether nobody touched a file or folder, nor anything in it, for `FOREIGN_AGE_S`."""
    newest = 0.0
    with contextlib.suppress(OSError):  # what vanishes meanwhile is somebody's
        for p in (left, *left.rglob("*")):
            newest = max(newest, p.lstat().st_mtime, p.lstat().st_ctime)
        with tempfile.TemporaryFile(dir=left.parent) as probe:  # clocks of machines differ; the server's is one
            return os.fstat(probe.fileno()).st_mtime - newest > FOREIGN_AGE_S
    return False


def tidy(path: Path) -> None:
    """Removes what unfinished runs left of an output that stands: temporary files, and parts nobody will take up."""
    sweep(path)
    for what in ("parts", "codes", "guess"):
        remove(_hidden(path, what))


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
    """Packs a folder into an uncompressed sealed zip, names sorted and dates fixed: equal content gives equal bytes."""
    with new_file(path) as temporary:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            archive.comment = ROOM
            for file in sorted(p for p in folder.rglob("*") if p.is_file()):
                entry = zipfile.ZipInfo(file.relative_to(folder).as_posix(), EPOCH)
                with archive.open(entry, "w", force_zip64=True) as sink, file.open("rb") as source:
                    shutil.copyfileobj(source, sink, 1 << 20)
        seal_file(temporary, in_comment=True)


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
        self.folder = _hidden(output, what)
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


def is_alive(pid: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # there, and not ours
        return True
    return True


def _flush_file(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems flush files only
            raise
    finally:
        os.close(handle)
