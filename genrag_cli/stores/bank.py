"""A bank: measured spots with counts and embeddings, read lazily; a folder with an atomic manifest.

Formats stand in `layout.py`. This module reads; `bank_writer.py` writes. It knows nothing of slides, solvers or heads.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.errors import BankError, nearest
from genrag_cli.stores.atomic import digest_file, lock_is_held
from genrag_cli.stores.layout import FORMAT, FORMAT_VERSION, MANIFEST
from genrag_cli.stores.zipped import opened, read_arrays, read_csr_rows, read_frame, read_index
from genrag_cli.types import BackboneCard, Doubles, Floats, Ints, Strings, fingerprint


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a bank, finished or not.

    Raises:
        BankError: where there is none, it is damaged, or of a newer format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        found = "the folder does not exist" if not folder.exists() else f"it holds no {MANIFEST}"
        raise BankError(f"no bank at {folder}: {found}", "Build one: generag build-bank TRAIN --bank " + str(folder))
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise BankError(f"{path} cannot be read: {error}", "Build the bank again into an empty folder.") from error
    if manifest.get("format") != FORMAT or manifest.get("format_version", 0) > FORMAT_VERSION:
        raise BankError(
            f"{path} is {manifest.get('format')} {manifest.get('format_version')}, this generag reads {FORMAT} up to "
            f"{FORMAT_VERSION}",
            "Update generag, or build the bank again.",
        )
    return manifest


@dataclass(frozen=True, eq=False)
class Bank:
    """A finished bank, opened for reading with one of its backbones."""

    folder: Path
    manifest: dict[str, Any]
    backbone: str
    number: int
    """Of the version, from 1."""

    @staticmethod
    def open(folder: Path, backbone: str, version: int | None = None) -> "Bank":
        """Opens a bank at its newest version, or an older one.

        Raises:
            BankError: where it is missing, unfinished, or lacks the backbone (with the line that adds it).
        """
        manifest = read_manifest(folder)
        known = [b for b, entry in manifest["backbones"].items() if entry["versions"]]
        if backbone not in known:
            writer = " and another process is writing it now" if lock_is_held(folder) else ""
            if not known:
                raise BankError(f"the bank {folder} is not finished{writer}", _finish_line(manifest, folder, backbone))
            raise BankError(
                f"the bank {folder} has no embeddings of backbone {backbone!r}; it has {', '.join(known)}{writer}",
                f"{nearest(backbone, known)}\nTo add it: " + _finish_line(manifest, folder, backbone),
            )
        newest = len(manifest["backbones"][backbone]["versions"])
        if version is not None and not 1 <= version <= newest:
            raise BankError(f"the bank {folder} has versions 1 to {newest} of {backbone}, {version} was asked")
        return Bank(folder, manifest, backbone, version or newest)

    @property
    def genes(self) -> Strings:
        """(G,) symbols, frozen at creation."""
        return np.asarray(self.manifest["genes"], np.str_)

    @property
    def version(self) -> dict[str, Any]:
        """The version of this backbone that was opened: sections, anchors, heads and statistics."""
        version: dict[str, Any] = self.manifest["backbones"][self.backbone]["versions"][self.number - 1]
        return version

    @property
    def anchors(self) -> Strings:
        """(A,) anchor genes."""
        return np.asarray(self.version["anchors"], np.str_)

    @property
    def card(self) -> BackboneCard:
        """The backbone as it was when the bank was built."""
        return BackboneCard(**self.manifest["backbones"][self.backbone]["card"])

    @property
    def geometry(self) -> dict[str, float]:
        """`fov_um`, `pitch_um` and `spot_um` of the bank."""
        geometry: dict[str, float] = self.manifest["geometry"]
        return geometry

    @cached_property
    def sections(self) -> list[dict[str, Any]]:
        """Entries of the sections of this version, in bank order."""
        by_name = {s["name"]: s for s in self.manifest["sections"]}
        return [by_name[name] for name in self.version["sections"]]

    @cached_property
    def n_spots(self) -> int:
        """N."""
        return sum(s["n_spots"] for s in self.sections)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of everything that a prediction from this version depends on."""
        return fingerprint(self.genes, [s["sha256"] for s in self.sections], self.version, self.card, self.geometry)

    @cached_property
    def section_of(self) -> Strings:
        """(N,) section of every spot."""
        return np.repeat(np.asarray([s["name"] for s in self.sections], np.str_), [s["n_spots"] for s in self.sections])

    @cached_property
    def patient_of(self) -> Strings:
        """(N,) patient of every spot; empty where unknown."""
        names = np.asarray([s["patient"] or "" for s in self.sections], np.str_)
        return np.repeat(names, [s["n_spots"] for s in self.sections])

    @cached_property
    def spot_names(self) -> Strings:
        """(N,) `section/spot`, unique."""
        parts = []
        for entry in self.sections:
            with opened(self.folder / entry["file"]) as group:
                parts.append(np.char.add(entry["name"] + "/", read_index(group, "obs")))
        return np.concatenate(parts)

    @cached_property
    def embeddings(self) -> list[Floats]:
        """One (n, d) array per section, as the backbone gave them."""
        files = self.manifest["backbones"][self.backbone]["sections"]
        out = []
        for entry in self.sections:
            with opened(self.folder / files[entry["name"]]["file"]) as group:
                out.append(np.asarray(group[f"obsm/{self.backbone}"][...], np.float32))
        return out

    @cached_property
    def derived(self) -> dict[str, NDArray[Any]]:
        """Head and gene statistics of this version, by path (`layout.DERIVED`)."""
        return read_arrays(self.folder / self.version["file"])

    def count_blocks(self, rows: int = 1024) -> Iterator[tuple[int, Any, Doubles]]:
        """Walks the bank in blocks of rows: (first bank row, counts CSR (b, G), total counts (b,))."""
        first = 0
        for entry in self.sections:
            with opened(self.folder / entry["file"]) as group:
                totals = read_frame(group, "obs")["total_counts"].to_numpy(np.float64)
                for low in range(0, entry["n_spots"], rows):
                    high = min(low + rows, entry["n_spots"])
                    yield first + low, read_csr_rows(group, slice(low, high)), totals[low:high]
            first += entry["n_spots"]


def _finish_line(manifest: dict[str, Any], folder: Path, backbone: str) -> str:
    train = manifest.get("train", "TRAIN")
    return f"generag build-bank {train} --backbone {backbone} --bank {folder}"


def verify_bank(folder: Path) -> list[str]:
    """Compares every file of a bank with its digest and opens it; returns what is wrong, empty when nothing is.

    Raises:
        BankError: where there is no readable manifest.
    """
    manifest = read_manifest(folder)
    files = [(s["file"], s["sha256"]) for s in manifest["sections"]]
    for entry in manifest["backbones"].values():
        files += [(s["file"], s["sha256"]) for s in entry["sections"].values()]
        files += [(v["file"], v["sha256"]) for v in entry["versions"]]
    wrong = []
    for name, digest in files:
        path = folder / name
        if not path.is_file():
            wrong.append(f"{name}: missing")
        elif digest_file(path) != digest:
            wrong.append(f"{name}: its digest is not the manifest's; the file was changed or cut short")
    if not any(entry["versions"] for entry in manifest["backbones"].values()):
        wrong.append("the build was not finished")
    return wrong


@dataclass(frozen=True, eq=False)
class SectionReader:
    """One finished section of a bank, whether or not the bank is finished."""

    folder: Path
    entry: dict[str, Any]
    names: Strings
    centres: Doubles
    array_rc: Ints
    totals: Doubles

    @staticmethod
    def open(folder: Path, entry: dict[str, Any]) -> "SectionReader":
        """Reads all but the counts."""
        with opened(folder / entry["file"]) as group:
            obs = read_frame(group, "obs")
            centres = np.asarray(group["obsm/spatial"][...], np.float64)
        rc = obs[["array_row", "array_col"]].to_numpy(np.int64)
        totals = obs["total_counts"].to_numpy(np.float64)
        return SectionReader(folder, entry, np.asarray(obs.index, np.str_), centres, rc, totals)

    @property
    def name(self) -> str:
        """Name of the section."""
        return str(self.entry["name"])

    @property
    def patient(self) -> str | None:
        """Patient, None where unknown."""
        patient: str | None = self.entry["patient"]
        return patient

    def counts(self) -> Any:
        """CSR (n, G), read anew at each call."""
        with opened(self.folder / self.entry["file"]) as group:
            return read_csr_rows(group, slice(0, len(self.names)))
