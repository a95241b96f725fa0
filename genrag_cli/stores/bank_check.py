"""Whether the files of a bank are still those that were written: all of it, or what a prediction reads.

Opening a bank compares the manifest, gene list and heads with their digests, and no more than the lengths of sections
and embeddings, which are large; here they are read. This module knows no contents.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from genrag_cli.errors import BankError
from genrag_cli.stores.bank import Bank, build_line, find_damage, find_faults, read_manifest
from genrag_cli.types import Listener, Progress

THREADS = 4


def verify_bank(folder: Path) -> list[str]:
    """Compares every file of a bank with its length and digest; returns what is wrong, empty when nothing is.

    Raises:
        BankError: where there is no readable manifest.
    """
    manifest = read_manifest(folder)
    files = [manifest["genes_file"], *manifest["sections"]]
    files += [s["thumbnails"] for s in manifest["sections"] if s.get("thumbnails")]
    for entry in manifest["backbones"].values():
        used = [v for v in entry["versions"] if not v.get("withdrawn")]
        files += [*entry["sections"].values(), *used, *(t for v in used for t in v.get("tunings", []))]
        files += [entry["predicts"]] if entry.get("predicts") else []
    wrong = [f"{file} was taken out and still waits to be deleted" for file in manifest.get("leaving", [])]
    wrong += _read_all(folder, files, "", Listener())
    for backbone, entry in manifest["backbones"].items():
        newest = entry["versions"][-1] if entry["versions"] else {"withdrawn": True}
        if newest.get("withdrawn"):
            wrong.append(f"the build was not finished: no version of {backbone}")
        else:
            wrong += find_faults(folder, manifest, backbone, len(entry["versions"]))
    if not manifest["backbones"]:
        wrong.append("the build was not finished: no backbone")
    return list(dict.fromkeys(wrong))


def verify_sections(bank: Bank, listener: Listener, *, threads: int = THREADS) -> None:
    """Reads every section and all embeddings that an opened version uses, once, and compares them with their digests.

    Args:
        bank: opened, by which its manifest and heads are known to be whole.
        listener: shown how far it is, in MB.
        threads: that read and hash.

    Raises:
        BankError: naming the damaged files, and how to make them anew.
    """
    embeddings = bank.manifest["backbones"][bank.backbone]["sections"]
    files = [*bank.sections, *(embeddings[section["name"]] for section in bank.sections)]
    if wrong := _read_all(bank.folder, files, f"check {bank.folder.name} (MB)", listener, threads):
        raise BankError(
            f"the bank {bank.folder} is damaged: {'; '.join(wrong)}",
            f"Take the named files away, then: {build_line(bank.manifest, bank.folder, bank.backbone)}",
        )


def _read_all(
    folder: Path, files: Sequence[dict[str, Any]], stage: str, listener: Listener, threads: int = THREADS
) -> list[str]:
    """What is wrong with the files of some entries, in their order."""
    total, done, wrong = sum(int(entry["bytes"]) for entry in files), 0, []
    with ThreadPoolExecutor(max(1, threads)) as pool:
        for entry, found in zip(files, pool.map(lambda e: find_damage(folder, e), files), strict=True):
            wrong += found
            done += int(entry["bytes"])
            listener.progress(Progress(stage, done // 10**6, total // 10**6))
    return wrong
