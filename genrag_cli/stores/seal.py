r"""Digests that travel with finished files: an HDF5 file, a zip, a Zarr folder; and whether one is still as written.

A sealed file ends in `SEAL_BYTES` bytes, `\ngenerag-sha256 <64 hex> <20 digits>\n`: sha256 and number of all bytes
before them. HDF5 ignores what stands after its end; in a zip they are the archive's comment. Whoever opens an HDF5 file
for writing cuts the seal off, which is told from a file that never had one by the `MARK` that its writer puts among its
strings. A sealed folder holds `DIGESTS`, a list of its files; hidden files beside it are not looked at.

Nothing is given to an HDF5 or Zarr library here, so that mangled bytes harm nobody. This module knows bytes, not what
they mean, and it repairs nothing.
"""

import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

State = Literal["whole", "damaged", "changed", "unsealed"]

MARK = "generag-sealed"
"""Stands as a string within every HDF5 file that is then sealed."""
DIGESTS = ".generag-digests.json"
SEAL_BYTES = 102
ROOM = b" " * SEAL_BYTES
"""Comment of a zip that is to be sealed."""
_SEAL = re.compile(rb"\ngenerag-sha256 ([0-9a-f]{64}) ([0-9]{20})\n")
_NAME = b"\ngenerag-sha256 "
_HDF5, _ZIP, _ZIP_END = b"\x89HDF\r\n\x1a\n", (b"PK\x03\x04", b"PK\x05\x06"), b"PK\x05\x06"
_HEAD_BYTES, _END_BYTES = 64, 22
_LONGEST_LIST = 1 << 28
_AT_ONCE = 1 << 20
_SHOWN = 3
_SUFFIXES = (".h5ad", ".zip")
THREADS = 4


@dataclass(frozen=True)
class Seal:
    """What a digest says of a file or folder."""

    state: State
    """`whole`: every byte is as written; `damaged`: it is not; `changed`: another program wrote into it; `unsealed`: it
    has no digest, as files of earlier versions and of other programs."""
    sha256: str
    """Recorded in the seal; empty where there is none."""
    reason: str
    """In words; empty where it is whole."""


_UNSEALED = Seal("unsealed", "", "no digest: written by an earlier version, or by another program")


def seal_file(path: Path, *, in_comment: bool = False) -> None:
    """Appends its digest to a finished file, which is read once for it.

    Writers of HDF5 and zip go back to what they wrote before, so their bytes cannot be hashed as they come.

    Args:
        path: a file that nobody else knows yet.
        in_comment: it is a zip whose comment is `ROOM`, which the digest takes the place of.

    Raises:
        OSError: where it cannot be read or written.
    """
    length = path.stat().st_size - (SEAL_BYTES if in_comment else 0)
    with path.open("r+b") as file:
        digest = _hash(file, length)
        file.seek(length)
        file.write(b"\ngenerag-sha256 %s %020d\n" % (digest.encode(), length))


def seal_folder(folder: Path) -> None:
    """Adds a list of its files and their digests to a finished folder; each is read once, some at a time.

    Raises:
        OSError: where something cannot be read or written.
    """
    files = _files(folder)
    with ThreadPoolExecutor(THREADS) as pool:
        digests = list(pool.map(_digest, files.values()))
    listed = {name: [path.stat().st_size, digest] for (name, path), digest in zip(files.items(), digests, strict=True)}
    content = {"files": listed, "sha256": _digest_list(listed)}
    (folder / DIGESTS).write_text(json.dumps(content, indent=0, sort_keys=True) + "\n", encoding="utf-8")


def check(path: Path) -> Seal:
    """Whether a file or folder is still as it was written; all of it is read, and none of it believed before that."""
    try:
        if path.is_dir():
            return _check_folder(path)
        if path.exists() and not path.is_file():  # whoever reads from a pipe waits
            return Seal("damaged", "", "neither a file nor a folder")
        with path.open("rb") as file:
            return _check_file(file, path.stat().st_size, path.suffix in _SUFFIXES)
    except FileNotFoundError:
        return Seal("damaged", "", "no such file or folder")
    except OSError as error:
        return Seal("damaged", "", f"cannot be read: {error.strerror or error}")


def recorded_digest(path: Path) -> str:
    """The digest that a file or folder says it has, unchecked; empty where it says none."""
    try:
        if path.is_dir():
            listed = _read_list(path / DIGESTS) if is_sealed_folder(path) else None
            return "" if listed is None else _digest_list(listed)
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - SEAL_BYTES))
            found = _SEAL.fullmatch(file.read(SEAL_BYTES))
    except OSError:
        return ""
    return "" if found is None else found[1].decode()


def is_sealed_folder(path: Path) -> bool:
    """Whether a folder has a list of digests, right or wrong."""
    return (path / DIGESTS).is_file()


def _check_file(file: BinaryIO, size: int, ours: bool) -> Seal:
    file.seek(max(0, size - SEAL_BYTES))
    found = _SEAL.fullmatch(file.read(SEAL_BYTES))
    if found is None:
        return _check_without(file, size, ours)
    digest, length = found[1].decode(), int(found[2])
    if size > length + SEAL_BYTES:
        return Seal(
            "changed", digest, f"changed after it was written: {size - SEAL_BYTES} bytes, {length} were written"
        )
    if size < length + SEAL_BYTES:
        return Seal("damaged", digest, f"cut short: {size - SEAL_BYTES} of {length} bytes")
    file.seek(0)
    if _hash(file, length) != digest:
        return Seal("damaged", digest, "damaged: its bytes are not those that were written")
    return Seal("whole", digest, "")


def _check_without(file: BinaryIO, size: int, ours: bool) -> Seal:
    """A file that does not end in a seal: it never had one, was changed, or was cut; `ours` by its name."""
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    if head.startswith(_HDF5):
        return _check_hdf5(file, size, _end_of_hdf5(head))
    if head.startswith(_ZIP):
        return _check_zip(file, size)
    if head and not ours:
        return _UNSEALED
    found = "it is neither an HDF5 nor a zip file" if head else "it is empty"
    return Seal("damaged", "", f"damaged: {found}")


def _check_hdf5(file: BinaryIO, size: int, end: int | None) -> Seal:
    if size < (end or _HEAD_BYTES):
        return Seal("damaged", "", f"cut short: {size} of {end or 'more'} bytes")
    if end is not None and size - end == SEAL_BYTES:  # something stood there, whatever became of the mark
        return Seal("damaged", "", "damaged: so is its digest")
    if not _contains(file, MARK.encode(), end or size):
        return _UNSEALED
    if end != size:
        return Seal("damaged", "", "damaged: so is its digest")
    return Seal("changed", "", "changed after it was written: its digest is gone")


def _check_zip(file: BinaryIO, size: int) -> Seal:
    file.seek(max(0, size - _END_BYTES - 0xFFFF))
    tail = file.read()
    if (at := tail.rfind(_ZIP_END)) < 0:
        return Seal("damaged", "", "cut short: a zip file without its end")
    if int.from_bytes(tail[at + 20 : at + 22], "little") == SEAL_BYTES or _NAME in tail:
        return Seal("damaged", "", "damaged: so is its digest")
    return _UNSEALED


def _end_of_hdf5(head: bytes) -> int | None:
    """Where an HDF5 file says that it ends; None where it says it in an unusual way."""
    version = head[8] if len(head) == _HEAD_BYTES else -1
    offset_bytes, at = {0: (13, 40), 1: (13, 44), 2: (9, 28), 3: (9, 28)}.get(version, (0, 0))
    return int.from_bytes(head[at : at + 8], "little") if at and head[offset_bytes] == 8 else None


def _contains(file: BinaryIO, what: bytes, length: int) -> bool:
    """Whether the first bytes of a file hold something."""
    file.seek(0)
    before = b""
    while length > 0 and (part := file.read(min(_AT_ONCE, length))):
        if what in before + part:
            return True
        before, length = part[-len(what) :], length - len(part)
    return False


def _check_folder(folder: Path) -> Seal:
    if not is_sealed_folder(folder):
        return _UNSEALED
    listed = _read_list(folder / DIGESTS)
    if listed is None:
        return Seal("damaged", "", f"damaged: so is {DIGESTS}")
    digest, files = _digest_list(listed), _files(folder)
    if wrong := _compare(listed, files):
        return Seal("damaged", digest, f"damaged or changed: {wrong}")
    if more := sorted(files.keys() - listed.keys()):
        return Seal("changed", digest, f"changed after it was written: {_few(more)} added")
    return Seal("whole", digest, "")


def _compare(listed: dict[str, list[Any]], files: dict[str, Path]) -> str:
    """What is wrong with the files of a list, quick things first; empty where nothing is."""
    if missing := sorted(listed.keys() - files.keys()):
        return f"{_few(missing)} missing"
    if lengths := [name for name in listed if files[name].stat().st_size != listed[name][0]]:
        return f"{_few(lengths)} of another length"
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(_digest, (files[name] for name in listed))
        wrong = [name for name, now in zip(listed, found, strict=True) if now != listed[name][1]]
    return f"{_few(wrong)} with other bytes" if wrong else ""


def _read_list(path: Path) -> dict[str, list[Any]] | None:
    """Length and digest of every file, or None where the list is not what `seal_folder` wrote."""
    if path.stat().st_size > _LONGEST_LIST:
        return None
    try:
        content = json.loads(path.read_bytes())
        listed: dict[str, list[Any]] = content["files"]
        return listed if content["sha256"] == _digest_list(listed) else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _digest_list(listed: dict[str, list[Any]]) -> str:
    return hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()


def _files(folder: Path) -> dict[str, Path]:
    """Every file below a folder that is not hidden, by its name in order."""
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {name: found[name] for name in sorted(found) if not found[name].name.startswith(".")}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash(file: BinaryIO, length: int) -> str:
    """Sha256 of the next bytes of a file."""
    digest = hashlib.sha256()
    while length > 0 and (part := file.read(min(_AT_ONCE, length))):
        digest.update(part)
        length -= len(part)
    return digest.hexdigest()


def _few(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
