"""A bank: measured spots with counts and embeddings, read lazily; a folder with an atomic manifest.

Formats stand in `layout.py`. This module reads; `bank_writer.py` writes. It knows nothing of slides, solvers or heads.
"""

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.errors import BankError, nearest
from genrag_cli.stores.atomic import digest_file, lock_is_held
from genrag_cli.stores.layout import (
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    MANIFEST_KEYS,
    MANIFEST_NOTES,
    digest_manifest,
    find_escapes,
)
from genrag_cli.stores.zipped import opened, read_about, read_arrays, read_column, read_csr, read_csr_rows, read_index
from genrag_cli.types import BackboneCard, Doubles, Floats, Ints, Strings, fingerprint


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a bank, finished or not, with `genes` and `gene_ids` in it.

    Raises:
        BankError: where there is none, it is damaged, or of another format.
    """
    remedy = "Put back a copy of it, or build the bank again into another folder."
    path = folder / MANIFEST
    if not path.is_file():
        found = "the folder does not exist" if not folder.exists() else f"it holds no {MANIFEST}"
        raise BankError(f"no bank at {folder}: {found}", "Build one: generag build-bank TRAIN --bank " + str(folder))
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise BankError(f"{path} is damaged: {error}", remedy) from error
    if not isinstance(manifest, dict) or not isinstance(found := manifest.get("format_version", 0), int):
        raise BankError(f"{path} is damaged: it holds no manifest", remedy)
    if manifest.get("format") != FORMAT or found > FORMAT_VERSION:
        raise BankError(
            f"{path} is {manifest.get('format')} {found}, this generag reads {FORMAT} {FORMAT_VERSION}",
            "Update generag, or build the bank again.",
        )
    if found < FORMAT_VERSION:
        raise BankError(
            f"{path} is {FORMAT} {found}, of an older generag; this one reads {FORMAT} {FORMAT_VERSION}",
            "Build the bank again into another folder.",
        )
    if manifest.get("manifest_sha256") not in (None, digest_manifest(manifest)):
        by_hand = f"{remedy} Where the change is meant, delete the line with manifest_sha256."
        raise BankError(f"{path} is damaged, or was changed by hand: its digest is not that of its content", by_hand)
    strange = sorted(manifest.keys() - {*MANIFEST_KEYS, *MANIFEST_NOTES, "manifest_sha256"})
    if strange and manifest.get("manifest_sha256") is None:
        raise BankError(f"{path} is damaged: it has no digest, but {strange[0][:80]!r}, which no bank has", remedy)
    if missing := [key for key in MANIFEST_KEYS if key not in manifest]:
        raise BankError(f"{path} is damaged: it lacks {', '.join(missing)}", remedy)
    if outside := find_escapes(manifest):
        raise BankError(f"{path} is damaged: it names {outside[0]!r}, which lies outside the bank", remedy)
    if wrong := find_damage(folder, manifest["genes_file"]):
        raise BankError(f"the bank {folder} is damaged: {wrong[0]}", remedy)
    return {**manifest, **json.loads((folder / manifest["genes_file"]["file"]).read_text(encoding="utf-8"))}


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
            BankError: where it is missing, unfinished or damaged (a file is gone, cut short, or no longer the one that
                the version was made from), lacks the backbone (with the line that adds it), or where sections of the
                version were taken out.
        """
        manifest = read_manifest(folder)
        known = [b for b, entry in manifest["backbones"].items() if entry["versions"]]
        if backbone not in known:
            writer = " and another process is writing it now" if lock_is_held(folder) else ""
            line = build_line(manifest, folder, backbone)
            if not known:
                raise BankError(f"the bank {folder} is not finished{writer}", f"Finish it: {line}")
            raise BankError(
                f"the bank {folder} has no embeddings of backbone {backbone!r}; it has {', '.join(known)}{writer}",
                f"{nearest(backbone, known)}\nTo add it: {line}",
            )
        newest = len(manifest["backbones"][backbone]["versions"])
        if version is not None and not 1 <= version <= newest:
            raise BankError(f"the bank {folder} has versions 1 to {newest} of {backbone}, {version} was asked")
        bank = Bank(folder, manifest, backbone, version or newest)
        _expect_kept(folder, manifest, backbone, bank.number)
        if wrong := find_faults(folder, manifest, backbone, bank.number):
            line = f"Repair it: {build_line(manifest, folder, backbone)}"
            old = "That version is history: predict again with the present bank."
            raise BankError(
                f"the bank {folder} is damaged or unfinished: {'; '.join(wrong)}",
                line if bank.number == newest else old,
            )
        return bank

    @cached_property
    def genes(self) -> Strings:
        """(G,) symbols, frozen at creation."""
        return np.asarray(self.manifest["genes"], np.str_)

    @property
    def gene_ids(self) -> Strings | None:
        """(G,) stable ids, empty where one is unknown; None where the sections had none."""
        ids = self.manifest["gene_ids"]
        return None if ids is None else np.asarray(ids, np.str_)

    @cached_property
    def version(self) -> dict[str, Any]:
        """The version of this backbone that was opened: sections, anchors and facts of the heads."""
        return read_version(self.folder, self.manifest["backbones"][self.backbone]["versions"][self.number - 1])

    @property
    def anchors(self) -> Strings:
        """(A,) anchor genes."""
        return np.asarray(self.version["anchors"], np.str_)

    @property
    def card(self) -> BackboneCard:
        """The backbone as it was when the bank was built."""
        return BackboneCard(**self.manifest["backbones"][self.backbone]["card"])

    @property
    def geometry(self) -> dict[str, Any]:
        """`crop`, `pitch_um`, `spot_um` and, where crop is `fov`, `fov_um` of the bank."""
        geometry: dict[str, Any] = self.manifest["geometry"]
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
    def measured(self) -> NDArray[np.bool_]:
        """(S, G) which of the bank's genes each section of this version measured, in bank order."""
        out = np.ones((len(self.sections), len(self.genes)), np.bool_)
        for row, entry in enumerate(self.sections):
            if entry["n_missing"]:
                out[row] = SectionReader.open(self.folder, entry).measured
        return out

    @cached_property
    def spot_names(self) -> Strings:
        """(N,) `section/spot`, unique."""
        parts = []
        for entry in self.sections:
            with opened(self.folder / entry["file"]) as group:
                parts.append(np.char.add(entry["name"] + "/", read_index(group, "obs")))
        return np.concatenate(parts)

    @property
    def embeddings(self) -> Iterator[Floats]:
        """One (n, d) array per section, as the backbone gave them, read as they are asked for."""
        files = self.manifest["backbones"][self.backbone]["sections"]
        for entry in self.sections:
            yield read_embeddings(self.folder, files[entry["name"]], self.backbone)

    @cached_property
    def derived(self) -> dict[str, NDArray[Any]]:
        """Head and gene statistics of this version, by path (`layout.DERIVED`)."""
        path = self.folder / self.version["file"]  # `version` has compared its digest
        return read_arrays(path)

    def count_blocks(self, rows: int = 1024) -> Iterator[tuple[int, Any, Doubles]]:
        """Walks the bank in blocks of rows: (first bank row, counts CSR (b, G), total counts (b,))."""
        first = 0
        for entry in self.sections:
            with opened(self.folder / entry["file"]) as group:
                totals = np.asarray(read_column(group, "obs", "total_counts"), np.float64)
                for low in range(0, entry["n_spots"], rows):
                    high = min(low + rows, entry["n_spots"])
                    yield first + low, read_csr_rows(group, slice(low, high)), totals[low:high]
            first += entry["n_spots"]


def build_line(manifest: dict[str, Any], folder: Path, backbone: str) -> str:
    """The command that finishes or repairs a bank, or adds a backbone to it, and changes nothing else."""
    words = ["generag", "build-bank", *manifest["train"], "--backbone", backbone]
    for flag, values in manifest.get("asked", {}).items():
        for value in values:
            words += [flag, value]
    loading = manifest["backbones"].get(backbone, {}).get("loading") or {}
    for name in ("features", "features_key", "names_from"):
        words += [f"--{name.replace('_', '-')}", loading[name]] if name in loading else []
    return shlex.join([*words, "--bank", str(folder)])


def read_version(folder: Path, entry: dict[str, Any]) -> dict[str, Any]:
    """All that is known of a version: its entry in the manifest, and what its file adds to that.

    Raises:
        BankError: where the file is missing or damaged.
    """
    if wrong := find_damage(folder, entry):
        raise BankError(f"the bank {folder} is damaged: {wrong[0]}", "Run the same build-bank again; it makes it anew.")
    return {**read_about(folder / entry["file"]), **{k: v for k, v in entry.items() if k != "tunings"}}


def read_embeddings(folder: Path, entry: dict[str, Any], backbone: str) -> Floats:
    """(n, d) embeddings of a section, as the backbone gave them; `entry` is the manifest's."""
    with opened(folder / entry["file"]) as group:
        values: Floats = np.asarray(group[f"obsm/{backbone}"][...], np.float32)
        return values


def read_predicted(folder: Path, entry: dict[str, Any]) -> Strings | None:
    """Genes that a backbone predicts by itself, by its entry in the manifest; None where it predicts none, or any.

    Raises:
        BankError: where the file is missing or damaged.
    """
    file = entry.get("predicts")
    if not file:
        return None
    if wrong := find_damage(folder, file):
        raise BankError(f"the bank {folder} is damaged: {wrong[0]}", "Run build-bank again with this backbone.")
    return np.asarray(json.loads((folder / file["file"]).read_text(encoding="utf-8"))["genes"], np.str_)


def _expect_kept(folder: Path, manifest: dict[str, Any], backbone: str, number: int) -> None:
    """Refuses a version that used sections that were taken out."""
    versions = manifest["backbones"][backbone]["versions"]
    if not (gone := versions[number - 1].get("withdrawn")):
        return
    said = f"version {number} of {backbone} used {', '.join(gone[:5])}, which the bank {folder} had to give up"
    if number == len(versions):
        line = shlex.join(["generag", "bank", "remove", *gone, "--bank", str(folder)])
        raise BankError(f"{said}, and no version without was made yet", f"Finish it: {line}")
    raise BankError(
        f"{said}; it cannot be used any more", "That version is history: predict again with the present bank."
    )


def find_faults(folder: Path, manifest: dict[str, Any], backbone: str, number: int) -> list[str]:
    """What keeps a version from being used, seen without reading sections (see `bank_check`); empty when nothing is.

    Args:
        folder: the bank.
        manifest: its manifest.
        backbone: one with versions.
        number: of the version, from 1; one that is not withdrawn.
    """
    entry = manifest["backbones"][backbone]
    if wrong := find_damage(folder, entry["versions"][number - 1]):
        return wrong
    sections = {s["name"]: s for s in manifest["sections"]}
    for name, (counts, embeddings) in read_version(folder, entry["versions"][number - 1])["made_from"].items():
        for found, digest, what in (
            (sections.get(name), counts, "section"), (entry["sections"].get(name), embeddings, "embeddings of section"),
        ):  # fmt: skip
            if found is None or found["sha256"] != digest:
                wrong.append(f"{what} {name} changed after version {number} of {backbone} was made")
            else:
                wrong += _miss(folder, found)
    return wrong


def is_whole(folder: Path, entry: dict[str, Any]) -> bool:
    """Whether the file of a manifest's entry is there in its full length."""
    return not _miss(folder, entry)


def find_damage(folder: Path, entry: dict[str, Any]) -> list[str]:
    """What is wrong with the file of a manifest's entry, all of which is read; empty where nothing is."""
    if wrong := _miss(folder, entry):
        return wrong
    same = digest_file(folder / entry["file"]) == entry.get("sha256")
    return [] if same else [f"{entry['file']} was changed: its digest is not the manifest's"]


def _miss(folder: Path, entry: dict[str, Any]) -> list[str]:
    path, name = folder / entry["file"], entry["file"]
    if not path.is_file():
        return [f"{name} is missing"]
    if (size := path.stat().st_size) != entry.get("bytes"):
        return [f"{name} is cut short or was changed: {size} bytes, {entry.get('bytes')} expected"]
    return []


@dataclass(frozen=True, eq=False)
class SectionReader:
    """One finished section of a bank, whether or not the bank is finished; each part is read when it is asked for."""

    folder: Path
    entry: dict[str, Any]

    @staticmethod
    def open(folder: Path, entry: dict[str, Any]) -> "SectionReader":
        """The section of a manifest's entry."""
        return SectionReader(folder, entry)

    def __len__(self) -> int:
        return int(self.entry["n_spots"])

    @property
    def name(self) -> str:
        """Name of the section."""
        return str(self.entry["name"])

    @property
    def patient(self) -> str | None:
        """Patient, None where unknown."""
        patient: str | None = self.entry["patient"]
        return patient

    @cached_property
    def names(self) -> Strings:
        """(n,) spot names."""
        with opened(self.folder / self.entry["file"]) as group:
            return read_index(group, "obs")

    @cached_property
    def centres(self) -> Doubles:
        """(n, 2) x, y in level-0 px."""
        with opened(self.folder / self.entry["file"]) as group:
            return np.asarray(group["obsm/spatial"][...], np.float64)

    @cached_property
    def array_rc(self) -> Ints:
        """(n, 2) row, column in the lattice."""
        with opened(self.folder / self.entry["file"]) as group:
            return np.stack([read_column(group, "obs", c) for c in ("array_row", "array_col")], 1).astype(np.int64)

    @cached_property
    def totals(self) -> Doubles:
        """(n,) counts over all genes of the section, those outside the bank too."""
        with opened(self.folder / self.entry["file"]) as group:
            return np.asarray(read_column(group, "obs", "total_counts"), np.float64)

    @cached_property
    def measured(self) -> NDArray[np.bool_]:
        """(G,) which of the bank's genes the section measured."""
        return np.asarray(self.gene_columns("measured")["measured"], np.bool_)

    def gene_columns(self, *names: str) -> dict[str, NDArray[Any]]:
        """Columns of `var`, (G,) each, read anew at each call."""
        with opened(self.folder / self.entry["file"]) as group:
            return {name: read_column(group, "var", name) for name in names}

    def counts(self) -> Any:
        """CSR (n, G), read anew at each call."""
        with opened(self.folder / self.entry["file"]) as group:
            return read_csr(group)
