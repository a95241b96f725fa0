"""Writing a bank: sections, embeddings and versions are added one file and one manifest at a time.

A killed build leaves finished sections behind and nothing half-written; `bank.py` reads what is written here.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli._version import __version__
from genrag_cli.errors import BankError
from genrag_cli.stores.atomic import digest_file, write_json
from genrag_cli.stores.bank import is_whole, read_manifest
from genrag_cli.stores.layout import FORMAT, FORMAT_VERSION, MANIFEST, derived_file, embedding_file, section_file
from genrag_cli.stores.zipped import add_rows, opened, packing, write_anndata, write_arrays
from genrag_cli.types import BackboneCard, Doubles, Floats, Ints, Strings


class BankWriter:
    """Adds to the bank in `folder`; the caller holds its `writer_lock`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: dict[str, Any] = read_manifest(folder) if (folder / MANIFEST).exists() else {}

    @property
    def is_new(self) -> bool:
        """Whether nothing has been written yet."""
        return not self.manifest

    def create(self, *, genes: Strings, gene_ids: Strings | None, geometry: dict[str, Any], train: list[str]) -> None:
        """Freezes the gene list and the geometry of the bank.

        Raises:
            BankError: for a folder that holds something else.
        """
        if others := sorted(p.name for p in self.folder.glob("*") if not p.name.startswith(".")):
            raise BankError(
                f"{self.folder} is no bank and is not empty: it holds {', '.join(others[:3])}",
                "Name a folder that is not there yet with --bank.",
            )
        self.manifest = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "generag_version": __version__,
            "train": train,
            "genes": genes.tolist(),
            "gene_ids": None if gene_ids is None else gene_ids.tolist(),
            "geometry": geometry,
            "sections": [],
            "skipped": [],
            "dropped_genes": {},
            "backbones": {},
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
        entry: dict[str, Any], measured: NDArray[np.bool_] | None = None,
    ) -> None:  # fmt: skip
        """Adds one section.

        Args:
            name: its name.
            names: (n,) spot names.
            counts: CSR (n, G) over the bank's genes in the bank's order.
            totals: (n,) counts over all genes of the section.
            centres: (n, 2) x, y in level-0 px.
            array_rc: (n, 2) row, column in the lattice.
            entry: more for the manifest: `key`, `patient`, `pixel_size`, ...
            measured: (G,) which of the bank's genes the section measured; None: all.
        """
        import anndata
        import pandas as pd

        obs = pd.DataFrame(
            {"array_row": array_rc[:, 0], "array_col": array_rc[:, 1], "total_counts": totals},
            index=pd.Index(names.tolist(), dtype=object),
        )
        var = pd.DataFrame(index=pd.Index(self.manifest["genes"], dtype=object))
        if self.manifest["gene_ids"]:
            var["gene_ids"] = self.manifest["gene_ids"]
        known = np.ones(len(var), bool) if measured is None else measured
        var["measured"] = known
        file = section_file(name)
        others = [s for s in self.manifest["sections"] if s["name"] != name]
        if len(others) < len(self.manifest["sections"]):
            # Out of the manifest before its file is replaced: at no moment does an entry speak of another file.
            self.manifest["sections"] = others
            self._save()
        with packing(self.folder / file) as folder:
            write_anndata(folder, anndata.AnnData(X=counts, obs=obs, var=var, obsm={"spatial": centres}))
        entry = {"name": name, **self._identify(file), "n_spots": len(names), "n_missing": int((~known).sum()), **entry}
        self.manifest["sections"] = [*others, entry]
        self._save()

    def update_section(self, name: str, **entries: Any) -> None:
        """Changes facts of a finished section that stand in the manifest only, such as its patient."""
        for section in self.manifest["sections"]:
            if section["name"] == name:
                section.update(entries)
        self._save()

    def read_embeddings(self, backbone: str, name: str) -> Floats:
        """(n, d) embeddings of a finished section."""
        file = self.manifest["backbones"][backbone]["sections"][name]["file"]
        with opened(self.folder / file) as group:
            values: Floats = np.asarray(group[f"obsm/{backbone}"][...], np.float32)
            return values

    def embedded(self, card: BackboneCard, name: str, key: str) -> bool:
        """Whether this section's embeddings are finished under this key."""
        entry = self.manifest["backbones"].get(card.name, {}).get("sections", {}).get(name)
        return bool(entry and entry["key"] == key and is_whole(self.folder, entry))

    def add_embeddings(self, card: BackboneCard, name: str, names: Strings, blocks: Iterator[Floats], key: str) -> None:
        """Adds one section's embeddings, (b, d) block by block."""
        import anndata
        import pandas as pd

        file = embedding_file(card.name, name)
        sections = self.manifest["backbones"].get(card.name, {}).get("sections", {})
        if sections.pop(name, None):
            self._save()
        obs = pd.DataFrame(index=pd.Index(names.tolist(), dtype=object))
        with packing(self.folder / file) as folder:
            write_anndata(folder, anndata.AnnData(obs=obs))
            add_rows(folder, f"obsm/{card.name}", (len(names), card.dim), blocks)
        backbone = self.manifest["backbones"].setdefault(
            card.name, {"card": dataclasses.asdict(card), "sections": {}, "versions": []}
        )
        backbone["card"] = dataclasses.asdict(card)
        backbone["sections"][name] = {**self._identify(file), "key": key}
        self._save()

    def current_version(self, backbone: str) -> dict[str, Any] | None:
        """The newest version of a backbone; None where there is none, or its file is gone or cut short."""
        versions = self.manifest["backbones"][backbone]["versions"]
        return versions[-1] if versions and is_whole(self.folder, versions[-1]) else None

    def add_version(self, backbone: str, arrays: dict[str, NDArray[Any]], entry: dict[str, Any]) -> None:
        """Adds a version: arrays of `layout.DERIVED` and an entry with sections, anchors, panel and heads' facts.

        A newest version with the same `key` is one whose file was lost, and is written anew under its number.
        """
        versions = self.manifest["backbones"][backbone]["versions"]
        if versions and versions[-1]["key"] == entry["key"]:
            versions.pop()
        number = len(versions) + 1
        file = derived_file(backbone, number)
        write_arrays(self.folder / file, arrays)
        embeddings = self.manifest["backbones"][backbone]["sections"]
        counts = {s["name"]: s["sha256"] for s in self.manifest["sections"]}
        made_from = {name: [counts[name], embeddings[name]["sha256"]] for name in entry["sections"]}
        versions.append({"version": number, **self._identify(file), "made_from": made_from, **entry})
        self._save()

    def _identify(self, file: str) -> dict[str, Any]:
        path = self.folder / file
        return {"file": file, "sha256": digest_file(path), "bytes": path.stat().st_size}

    def _save(self) -> None:
        write_json(self.folder / MANIFEST, self.manifest)
