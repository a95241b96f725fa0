"""Writing a bank: sections, embeddings and versions are added, and taken out, one file and one manifest at a time.

A killed build leaves finished sections behind and nothing half-written; `bank.py` reads what is written here.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli._version import __version__
from genrag_cli.errors import BankError
from genrag_cli.stores.atomic import digest_file, new_file, remove, tidy, write_json
from genrag_cli.stores.bank import find_damage, is_whole, read_embeddings, read_manifest, read_predicted, read_version
from genrag_cli.stores.layout import (
    FORMAT,
    FORMAT_VERSION,
    GENES,
    MANIFEST,
    VERSION_KEYS,
    derived_file,
    digest_manifest,
    embedding_file,
    file_word,
    predicts_file,
    section_file,
    thumbnail_file,
)
from genrag_cli.stores.zipped import add_rows, packing, read_anndata, write_anndata, write_arrays
from genrag_cli.types import BackboneCard, Doubles, Floats, Ints, Strings

_ELSEWHERE = ("genes", "gene_ids")
"""Parts of the manifest that do not stand in its file."""


class BankWriter:
    """Adds to the bank in `folder`; the caller holds its `writer_lock`. A removal that was cut off is finished."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: dict[str, Any] = read_manifest(folder) if (folder / MANIFEST).exists() else {}
        self._delete_leaving()

    @property
    def is_new(self) -> bool:
        """Whether nothing has been written yet."""
        return not self.manifest

    def create(
        self, *, genes: Strings, gene_ids: Strings | None, geometry: dict[str, Any], train: Sequence[str], **notes: Any
    ) -> None:
        """Freezes the gene list and the geometry of the bank.

        Args:
            genes: (G,) symbols.
            gene_ids: (G,) stable ids, or None.
            geometry: of tiles and spots.
            train: where the sections come from.
            notes: as for `note`.

        Raises:
            BankError: for a folder that holds something else.
        """
        # A gene list alone is what a creation that was cut off leaves.
        if others := sorted(p.name for p in self.folder.glob("*") if not p.name.startswith(".") and p.name != GENES):
            raise BankError(
                f"{self.folder} is no bank and is not empty: it holds {', '.join(others[:3])}",
                "Name a folder that is not there yet with --bank.",
            )
        listed = {"genes": genes.tolist(), "gene_ids": None if gene_ids is None else gene_ids.tolist()}
        write_json(self.folder / GENES, listed)
        self.manifest = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "generag_version": __version__,
            "train": list(train),
            "genes_file": self._identify(GENES),
            **listed,
            "geometry": geometry,
            "sections": [],
            "skipped": [],
            "dropped_genes": {},
            "backbones": {},
            **notes,
        }
        self._save()

    def note(self, **entries: Any) -> None:
        """Sets flat entries of the manifest, such as `skipped` and `dropped_genes`."""
        if any(self.manifest.get(k) != v for k, v in entries.items()):
            self.manifest.update(entries)
            self._save()

    def section(self, name: str) -> dict[str, Any] | None:
        """The entry of a finished section, None where it is not there or its file is gone or cut short."""
        found = (s for s in self.manifest["sections"] if s["name"] == name)
        return next((s for s in found if is_whole(self.folder, s)), None)

    def add_section(
        self, name: str, *, names: Strings, counts: Any, totals: Doubles, centres: Doubles, array_rc: Ints,
        statistics: Mapping[str, NDArray[Any]], entry: dict[str, Any], measured: NDArray[np.bool_] | None = None,
    ) -> None:  # fmt: skip
        """Adds one section.

        Args:
            name: its name.
            names: (n,) spot names.
            counts: CSR (n, G) over the bank's genes in the bank's order; nothing in genes that were not measured.
            totals: (n,) counts over all genes of the section.
            centres: (n, 2) x, y in level-0 px.
            array_rc: (n, 2) row, column in the lattice.
            statistics: (G,) each, by column of `var` (`layout.statistic_column`): what versions need of the genes, so
                that none of them has to read the counts for it.
            entry: more for the manifest: `key`, `patient`, `pixel_size`, ...; what its `metadata` says of the section
                stands in `obs` too, the same for every spot.
            measured: (G,) which of the bank's genes the section measured; None: all.
        """
        import anndata
        import pandas as pd

        obs = pd.DataFrame(
            {"array_row": array_rc[:, 0], "array_col": array_rc[:, 1], "total_counts": totals},
            index=pd.Index(names.tolist(), dtype=object),
        )
        for key, value in entry.get("metadata", {}).items():
            if key not in obs and "/" not in key:  # which names of columns cannot have
                obs[key] = pd.Categorical([value] * len(obs))
        known = np.ones(len(self.manifest["genes"]), bool) if measured is None else measured
        var = pd.DataFrame({"measured": known, **statistics}, index=pd.Index(self.manifest["genes"], dtype=object))
        if self.manifest["gene_ids"]:
            var["gene_ids"] = self.manifest["gene_ids"]
        with self._replacing_section(name) as folder:
            write_anndata(folder, anndata.AnnData(X=counts, obs=obs, var=var, obsm={"spatial": centres}))
        self._enter_section(name, {"n_spots": len(names), "n_missing": int((~known).sum()), **entry})

    def copy_section(self, source: Path, entry: dict[str, Any], columns: Ints | None) -> None:
        """Adds a section of another bank.

        Args:
            source: that bank.
            entry: the section's in its manifest.
            columns: (G,) where that bank has the genes of this one; None: in the same places.
        """
        name = entry["name"]
        facts = {k: v for k, v in entry.items() if k not in ("name", "file", "sha256", "bytes", "thumbnails")}
        if columns is None:
            self._drop_section(name)
            with new_file(self.folder / section_file(name)) as temporary:
                shutil.copyfile(source / entry["file"], temporary)
        else:
            adata = read_anndata(source / entry["file"])[:, columns].copy()
            facts["n_missing"] = int((~adata.var["measured"].to_numpy(bool)).sum())
            with self._replacing_section(name) as folder:
                write_anndata(folder, adata)
        self._enter_section(name, facts)

    def update_section(self, name: str, **entries: Any) -> None:
        """Changes facts of a finished section that stand in the manifest only, such as its patient."""
        for section in self.manifest["sections"]:
            if section["name"] == name:
                section.update(entries)
        self._save()

    def read_embeddings(self, backbone: str, name: str) -> Floats:
        """(n, d) embeddings of a finished section."""
        return read_embeddings(self.folder, self.manifest["backbones"][backbone]["sections"][name], backbone)

    def embedded(self, card: BackboneCard, name: str, key: str) -> bool:
        """Whether this section's embeddings are finished under this key."""
        entry = self.manifest["backbones"].get(card.name, {}).get("sections", {}).get(name)
        return bool(entry and entry["key"] == key and is_whole(self.folder, entry))

    def add_embeddings(self, card: BackboneCard, name: str, names: Strings, blocks: Iterator[Floats], key: str) -> None:
        """Adds one section's embeddings, (b, d) block by block."""
        import anndata
        import pandas as pd

        for other in self.manifest["backbones"]:
            if other != card.name and file_word(other) == file_word(card.name):
                raise BankError(
                    f"the bank {self.folder} has embeddings of {other!r}, whose files are called like those of "
                    f"{card.name!r}",
                    "Build another bank (--bank), or call it otherwise.",
                )
        self._drop_embeddings(card.name, name)
        obs = pd.DataFrame(index=pd.Index(names.tolist(), dtype=object))
        with packing(self.folder / embedding_file(card.name, name)) as folder:
            write_anndata(folder, anndata.AnnData(obs=obs))
            add_rows(folder, f"obsm/{card.name}", (len(names), card.dim), blocks)
        self._enter_embeddings(dataclasses.asdict(card), name, key)

    def drop_embeddings(self, backbone: str) -> None:
        """Forgets the embeddings of every section, in one step: those to come are made otherwise."""
        self.manifest["backbones"][backbone]["sections"] = {}
        self._save()

    def copy_embeddings(self, source: Path, card: dict[str, Any], name: str, entry: dict[str, Any]) -> None:
        """Adds one section's embeddings from another bank, whose entry is given."""
        self._drop_embeddings(card["name"], name)
        with new_file(self.folder / embedding_file(card["name"], name)) as temporary:
            shutil.copyfile(source / entry["file"], temporary)
        self._enter_embeddings(card, name, entry["key"])

    def note_backbone(self, name: str, *, loading: dict[str, Any], predicts: Strings | None) -> None:
        """Records what a backbone with embeddings was loaded with, and the genes that it predicts by itself."""
        entry = self.manifest["backbones"][name]
        now = {"loading": loading, "predicts": None}
        if predicts is not None:
            write_json(self.folder / predicts_file(name), {"genes": predicts.tolist()})
            now["predicts"] = self._identify(predicts_file(name))
        if any(entry.get(k) != v for k, v in now.items()):
            entry.update(now)
            self._save()

    def copy_facts(self, source: Path, name: str, entry: dict[str, Any]) -> None:
        """Records of a backbone what another bank's entry says of it."""
        genes = read_predicted(source, entry)
        self.note_backbone(name, loading=entry.get("loading") or {}, predicts=genes)

    def predicted(self, name: str) -> Strings | None:
        """Genes that a backbone predicts by itself; None where it predicts none, or any."""
        return read_predicted(self.folder, self.manifest["backbones"][name])

    def current_version(self, backbone: str) -> dict[str, Any] | None:
        """What the manifest says of the newest version of a backbone; None where there is none that can be used."""
        versions = self.manifest["backbones"][backbone]["versions"]
        usable = versions and not versions[-1].get("withdrawn") and not find_damage(self.folder, versions[-1])
        return versions[-1] if usable else None

    def add_version(self, backbone: str, arrays: dict[str, NDArray[Any]], entry: dict[str, Any]) -> None:
        """Adds a version: arrays of `layout.DERIVED` and an entry with sections, anchors, panel and heads' facts.

        A newest version with the same `key` is one whose file was lost, and is written anew under its number.
        """
        versions = self.manifest["backbones"][backbone]["versions"]
        if versions and versions[-1]["key"] == entry["key"] and not versions[-1].get("withdrawn"):
            versions.pop()
        number = len(versions) + 1
        file = derived_file(backbone, number)
        embeddings = self.manifest["backbones"][backbone]["sections"]
        counts = {s["name"]: s["sha256"] for s in self.manifest["sections"]}
        made_from = {name: [counts[name], embeddings[name]["sha256"]] for name in entry["sections"]}
        write_arrays(self.folder / file, arrays, {**entry, "made_from": made_from})
        short = {key: entry[key] for key in VERSION_KEYS if key in entry}
        sizes = {"n_sections": len(entry["sections"]), "n_anchors": len(entry["anchors"])}
        versions.append({"version": number, **self._identify(file), **sizes, **short})
        self._save()

    def enter_tuning(self, backbone: str, version: int, file: str, key: str) -> None:
        """Enters a file of tuned settings with a version; see `tunings`."""
        entry = self.manifest["backbones"][backbone]["versions"][version - 1]
        entry.setdefault("tunings", []).append({**self._identify(file), "key": key})
        self._save()

    def remove_sections(self, names: Sequence[str]) -> None:
        """Takes sections out for good: their entries, then their files, and the versions that were made with them.

        Entries go first and in one step, which also lists the files that are to be deleted: at no moment does an entry
        speak of a file that is gone, and whoever opens the bank for writing after a crash deletes the rest.
        """
        going = set(names)
        leaving = [s["file"] for s in self.manifest["sections"] if s["name"] in going]
        self.manifest["sections"] = [s for s in self.manifest["sections"] if s["name"] not in going]
        for name in names:
            self.manifest["dropped_genes"].pop(name, None)
        for backbone in self.manifest["backbones"].values():
            backbone["sections"] = {n: s for n, s in backbone["sections"].items() if n not in going}
            for version in backbone["versions"]:
                leaving += self._withdraw(version, names)
        leaving += [thumbnail_file(name) for name in names]
        # Embeddings that were not finished have no entry, but parts on disk.
        embedded = sorted(p.name for p in (self.folder / "embeddings").glob("*"))
        leaving += [embedding_file(backbone, name) for backbone in embedded for name in names]
        self.manifest["removed"] = sorted({*self.manifest.get("removed", []), *names})
        self.manifest["leaving"] = [*self.manifest.get("leaving", []), *leaving]
        self._save()
        self._delete_leaving()

    def _withdraw(self, version: dict[str, Any], names: Sequence[str]) -> list[str]:
        """Makes history of a version that used some sections; returns its file where that is to go."""
        if version.get("withdrawn"):
            version["left"] = [n for n in version["left"] if n not in names]
            return []
        try:
            used = read_version(self.folder, version)["sections"]
        except BankError:  # lost, so that nobody can tell; it could not be used without being made again
            used = list(names)
        if not (gone := [n for n in used if n in names]):
            return []
        version |= {"withdrawn": gone, "left": [n for n in used if n not in names]}
        return [version["file"], *(t["file"] for t in version.pop("tunings", []))]

    def _delete_leaving(self) -> None:
        if "leaving" not in self.manifest:
            return
        for file in self.manifest["leaving"]:
            remove(self.folder / file)
            tidy(self.folder / file)
            if (self.folder / file).exists():
                raise BankError(f"{self.folder / file} could not be deleted", "Run the same command again.")
        del self.manifest["leaving"]
        self._save()

    def _drop_section(self, name: str) -> None:
        """Out of the manifest before its file is replaced: at no moment does an entry speak of another file."""
        others = [s for s in self.manifest["sections"] if s["name"] != name]
        if len(others) < len(self.manifest["sections"]):
            self.manifest["sections"] = others
            self._save()
        remove(self.folder / thumbnail_file(name))  # they show the spots of the section that goes

    def _replacing_section(self, name: str) -> Any:
        self._drop_section(name)
        return packing(self.folder / section_file(name))

    def _enter_section(self, name: str, facts: dict[str, Any]) -> None:
        self.manifest["sections"].append({"name": name, **self._identify(section_file(name)), **facts})
        self._save()

    def _drop_embeddings(self, backbone: str, name: str) -> None:
        if self.manifest["backbones"].get(backbone, {}).get("sections", {}).pop(name, None):
            self._save()

    def _enter_embeddings(self, card: dict[str, Any], name: str, key: str) -> None:
        empty: dict[str, Any] = {"sections": {}, "versions": []}
        backbone = self.manifest["backbones"].setdefault(card["name"], empty)
        backbone["card"] = card
        backbone["sections"][name] = {**self._identify(embedding_file(card["name"], name)), "key": key}
        self._save()

    def _identify(self, file: str) -> dict[str, Any]:
        path = self.folder / file
        return {"file": file, "sha256": digest_file(path), "bytes": path.stat().st_size}

    def _save(self) -> None:
        kept = {k: v for k, v in self.manifest.items() if k not in _ELSEWHERE}
        kept["manifest_sha256"] = self.manifest["manifest_sha256"] = digest_manifest(kept)
        with new_file(self.folder / MANIFEST) as temporary:
            temporary.write_text(_write_lines(kept) + "\n", encoding="utf-8")


def _write_lines(value: Any, depth: int = 4) -> str:
    """JSON with a line for each section, embeddings file and version: easy to compare, and written in no time.

    (Python's own indentation takes a second per megabyte, once per finished file.)
    """
    if depth and value and isinstance(value, dict):
        lines = (f"{json.dumps(key)}: {_write_lines(value[key], depth - 1)}" for key in sorted(value))
        return "{\n" + ",\n".join(lines) + "\n}"
    if depth and value and isinstance(value, list):
        return "[\n" + ",\n".join(json.dumps(one, sort_keys=True) for one in value) + "\n]"
    return json.dumps(value, sort_keys=True)
