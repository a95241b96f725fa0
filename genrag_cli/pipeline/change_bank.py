"""Sections out of a bank: their files are deleted, and versions made anew without them.

No slide is opened and nothing embedded. The gene list stays frozen: a bank keeps its genes when sections leave it.
"""

from collections.abc import Sequence
from pathlib import Path

from genrag_cli.errors import BankError, GeneragError, UsageError, nearest
from genrag_cli.pipeline.anchors import AnchorOptions
from genrag_cli.pipeline.derive import add_version
from genrag_cli.stores.atomic import writer_lock
from genrag_cli.stores.bank import read_manifest, read_version
from genrag_cli.stores.bank_writer import BankWriter
from genrag_cli.types import Listener


def remove_sections(folder: Path, names: Sequence[str], listener: Listener, *, dry_run: bool = False) -> None:
    """`generag bank remove`: takes sections out for good, as when consent is withdrawn.

    Their counts, embeddings and the versions that were made with them are deleted; every backbone gets a version
    without them, with anchors chosen as before. Versions that used them stay numbered, as history that cannot be
    opened. A rerun finishes what was cut off.

    Args:
        folder: the bank.
        names: of the sections; those that are out already are no error.
        listener: told what goes and what is made.
        dry_run: say it only.

    Raises:
        UsageError: for names that the bank does not have.
        BankError: where no section would be left, or the bank is held by another writer.
    """
    manifest = read_manifest(folder)
    there = [s["name"] for s in manifest["sections"]]
    for name in names:
        if name not in there and name not in manifest.get("removed", []):
            raise UsageError(f"no section {name} in the bank {folder}", nearest(name, there))
    going = [name for name in dict.fromkeys(names) if name in there]
    for backbone, entry in manifest["backbones"].items():
        if entry["sections"] and not set(entry["sections"]) - set(going):
            raise BankError(
                f"no section with embeddings of {backbone} would be left in the bank {folder}",
                "Delete the bank's folder instead, or leave a section in.",
            )
    if not set(there) - set(going):
        raise BankError(f"no section would be left in the bank {folder}", "Delete the bank's folder instead.")
    sizes = {s["name"]: s["n_spots"] for s in manifest["sections"]}
    for name in names:
        done = "would be deleted" if dry_run else "deleted"
        listener.say(f"{name}: {f'{sizes[name]} spots {done}' if name in going else 'is out already'}")
    if dry_run:
        return
    with writer_lock(folder, BankError):
        writer = BankWriter(folder)
        if going:
            writer.remove_sections(going)
        for backbone in writer.manifest["backbones"]:
            _renew(writer, backbone, listener)


def _renew(writer: BankWriter, backbone: str, listener: Listener) -> None:
    """A version like the newest, of those of its sections that are still there."""
    entry = writer.manifest["backbones"][backbone]
    if not entry["versions"]:
        listener.warn(f"{backbone} has no version yet: run build-bank again")
        return
    newest = entry["versions"][-1]
    used = newest["left"] if newest.get("withdrawn") else read_version(writer.folder, newest)["sections"]
    names = [name for name in used if name in entry["sections"]]
    if not names:  # the version's file was lost, so that nobody knows what it used
        names = [s["name"] for s in writer.manifest["sections"] if s["name"] in entry["sections"]]
    try:
        add_version(writer, backbone, names, AnchorOptions.recall(newest["recipe"]), listener)
    except GeneragError as error:
        raise BankError(
            f"no version of {backbone} could be made of the {len(names)} sections that are left: {error.message}",
            "The sections are out. Make a version with other anchors: generag build-bank TRAIN --anchors ...",
        ) from error
