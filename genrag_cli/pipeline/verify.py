"""Files and folders -> whether each is still as it was written, by the digests that travel with it.

It knows what generag writes by its name and its outline. What a file means is never read before its digest is right.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from genrag_cli.errors import BankError, UsageError
from genrag_cli.stores.atomic import lock_is_held
from genrag_cli.stores.bank import read_manifest
from genrag_cli.stores.bank_check import verify_bank
from genrag_cli.stores.layout import MANIFEST
from genrag_cli.stores.seal import Seal, State, check, is_sealed_folder
from genrag_cli.types import Listener, Progress

Kind = Literal["file", "folder", "bank"]

ENDINGS = (".h5ad", ".zarr.zip")
"""Of files that are looked for in folders; `.zarr` folders are too."""


@dataclass(frozen=True)
class Verified:
    """What became of one file, folder or bank."""

    path: Path
    kind: Kind
    state: State
    """Of `seal.Seal`; a bank is `whole` or `damaged`."""
    sha256: str
    """Recorded for it, of a bank for its manifest; empty where there is none."""
    reason: str

    @property
    def is_wrong(self) -> bool:
        """Whether it is not what was written; files without a digest may be."""
        return self.state in ("damaged", "changed")


def find_outputs(paths: Sequence[Path]) -> list[Path]:
    """Predictions, embeddings and banks that were named, or lie in folders that were.

    Raises:
        UsageError: for a path that does not exist, or a folder that holds none.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path}: no such file or folder", "Give predictions, embeddings, banks, or folders.")
        here = [path] if _is_output(path) or not path.is_dir() else list(_walk(path))
        if not here:
            raise UsageError(
                f"{path} holds no prediction, embeddings or bank ({', '.join(ENDINGS)}, .zarr)", "Give another folder."
            )
        found += here
    return list(dict.fromkeys(found))


def verify(paths: Sequence[Path], listener: Listener) -> Iterator[Verified]:
    """Reads each of them whole, one after the other."""
    for done, path in enumerate(paths):
        listener.progress(Progress("verify", done, len(paths)))
        if _is_bank(path):
            yield _verify_bank(path)
        else:
            seal = check(path) if not path.is_dir() or _is_zarr(path) else _NOTHING
            yield Verified(path, "folder" if path.is_dir() else "file", seal.state, seal.sha256, seal.reason)
    listener.progress(Progress("verify", len(paths), len(paths)))


_NOTHING = Seal("damaged", "", "damaged: neither a Zarr store nor a bank")


def _verify_bank(folder: Path) -> Verified:
    try:
        wrong, digest = verify_bank(folder), str(read_manifest(folder).get("manifest_sha256") or "")
    except BankError as error:
        return Verified(folder, "bank", "damaged", "", error.message)
    except (KeyError, TypeError, AttributeError, ValueError) as error:  # which a digest would have told
        return Verified(folder, "bank", "damaged", "", f"its {MANIFEST} is malformed: {type(error).__name__} {error}")
    if wrong:
        busy = "; another process is writing it now" if lock_is_held(folder) else ""
        return Verified(folder, "bank", "damaged", digest, "; ".join(wrong) + busy)
    earlier = "" if digest else f"its files are whole; {MANIFEST} has no digest: written by an earlier version"
    return Verified(folder, "bank", "whole" if digest else "unsealed", digest, earlier)


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if _is_output(path) or (path.is_file() and path.name.endswith(ENDINGS)):
            yield path
        elif path.is_dir() and not path.is_symlink():
            yield from _walk(path)


def _is_output(path: Path) -> bool:
    return path.is_dir() and (path.suffix == ".zarr" or _is_bank(path) or _is_zarr(path))


def _is_bank(path: Path) -> bool:
    if not path.is_dir() or _is_zarr(path):
        return False
    return (path / "sections").is_dir() or ((path / MANIFEST).is_file() and (path / ".writer.lock").is_file())


def _is_zarr(path: Path) -> bool:
    return is_sealed_folder(path) or any((path / name).is_file() for name in ("zarr.json", ".zgroup"))
