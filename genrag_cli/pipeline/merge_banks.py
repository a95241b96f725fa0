"""Two banks into a new one: stores are copied, versions made anew.

No slide is opened and nothing embedded. Genes are matched by the names that the banks have frozen.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from genrag_cli.errors import BankError, UsageError
from genrag_cli.genes.align import columns
from genrag_cli.pipeline.anchors import AnchorOptions
from genrag_cli.pipeline.derive import add_version
from genrag_cli.pipeline.mix_ups import refuse_names
from genrag_cli.pipeline.options import CommonGenes
from genrag_cli.stores.atomic import lock_is_held, writer_lock
from genrag_cli.stores.bank import Bank, read_manifest
from genrag_cli.stores.bank_writer import BankWriter
from genrag_cli.stores.thumbnails import copy_thumbnails
from genrag_cli.types import BackboneCard, GeneNames, Ints, Listener, Progress, Strings


@dataclass(frozen=True, eq=False)
class _Source:
    """A bank that goes into another."""

    folder: Path
    manifest: dict[str, Any]

    @cached_property
    def genes(self) -> Strings:
        """(G,) names."""
        return np.asarray(self.manifest["genes"], np.str_)

    @property
    def backbones(self) -> list[str]:
        """Those with a version."""
        return [name for name, entry in self.manifest["backbones"].items() if entry["versions"]]

    def places(self, genes: Strings) -> Ints | None:
        """(G,) where it has these genes; None: in the same places."""
        return None if np.array_equal(genes, self.genes) else columns(self.genes, genes)

    def ids(self, genes: Strings) -> Strings:
        """(G,) ids of these genes, empty where they are unknown."""
        known = self.manifest["gene_ids"] or [""] * len(self.genes)
        return np.asarray(known, np.str_)[columns(self.genes, genes)]

    def used(self, backbone: str) -> list[str]:
        """Sections of the newest version; BankError where that cannot be used."""
        names: list[str] = Bank.open(self.folder, backbone).version["sections"]
        return names


@dataclass(frozen=True, eq=False)
class _Plan:
    """What the new bank is made of."""

    first: _Source
    second: _Source
    genes: GeneNames
    sections: dict[str, tuple[list[str], list[str]]]
    """Of each backbone that both banks have: the sections from either."""

    def entries(self, which: int) -> list[dict[str, Any]]:
        """Entries of the sections that come from the first bank (0) or the second (1)."""
        used = {name for names in self.sections.values() for name in names[which]}
        return [s for s in (self.first, self.second)[which].manifest["sections"] if s["name"] in used]


def merge_banks(
    first: Path, second: Path, out: Path, listener: Listener, *, genes: CommonGenes = "shared", dry_run: bool = False
) -> None:
    """`generag bank merge`: a new bank with the sections of two, whose stores are copied and not embedded again.

    Args:
        first: a bank; order of genes, recipe for anchors and geometry are its.
        second: another, with the same geometry and the same revisions of backbones.
        out: the new bank, or one that an earlier run of the same merge left unfinished.
        listener: told what is left out.
        genes: `shared`: those that both have; `equal`: refuse lists that differ.
        dry_run: say it only.

    Raises:
        UsageError: for the same bank twice, or an unknown `genes`.
        BankError: where the banks do not fit, are unfinished or being written, or `out` is another bank.
    """
    if genes not in ("shared", "equal"):
        raise UsageError(f"--genes {genes} asked", "Known: shared, equal")
    if len({p.resolve() for p in (first, second, out)}) < 3:
        raise UsageError(f"{first}, {second} and {out} are not three banks", "Name two banks and a new one (--bank).")
    one, two = (_Source(folder, read_manifest(folder)) for folder in (first, second))
    for folder in (first, second):
        if lock_is_held(folder):
            raise BankError(f"{folder} is being written by another process", "Wait for it to end.")
    _expect_fit(one, two)
    backbones = _join_backbones(one, two, listener)
    plan = _Plan(one, two, _join_genes(one, two, genes), {b: (one.used(b), two.used(b)) for b in backbones})
    total = _tell(plan, out, listener, dry_run=dry_run)
    if dry_run:
        return
    with writer_lock(out, BankError):
        writer = BankWriter(out)
        _begin(writer, plan)
        done = 0
        for which, source in enumerate((one, two)):
            places = source.places(plan.genes.names)
            for entry in plan.entries(which):
                _copy(writer, source, entry, places, backbones, listener)
                done += 1
                listener.progress(Progress(f"copy sections to {out.name}", done, total))
        for backbone, (mine, others) in plan.sections.items():
            writer.copy_facts(one.folder, backbone, one.manifest["backbones"][backbone])
            recipe, other = (s.manifest["backbones"][backbone]["versions"][-1]["recipe"] for s in (one, two))
            if recipe != other:
                listener.warn(f"{backbone}: the banks chose anchors in different ways; now chosen as in {first}")
            add_version(writer, backbone, [*mine, *others], AnchorOptions.recall(recipe), listener)


def _expect_fit(one: _Source, two: _Source) -> None:
    """Refuses banks of different geometry or species, or with a section in common, by name or by counts."""
    shapes = one.manifest["geometry"], two.manifest["geometry"]
    for name in sorted({*shapes[0], *shapes[1]}):
        a, b = (shape.get(name) for shape in shapes)
        numbers = isinstance(a, float | int) and isinstance(b, float | int)
        if not (abs(a - b) <= 0.01 * abs(a) if numbers else a == b):
            raise BankError(
                f"{one.folder} was built with {name} {a}, {two.folder} with {b}",
                "Build one of them again as the other was.",
            )
    a, b = (source.manifest.get("species") for source in (one, two))
    if a and b and a != b:
        raise BankError(f"{one.folder} is {a}, {two.folder} is {b}", "Keep one species to a bank.")
    names = [{s["name"] for s in source.manifest["sections"]} for source in (one, two)]
    if both := sorted(names[0] & names[1]):
        raise BankError(
            f"{one.folder} and {two.folder} both have a section {', '.join(both[:5])} ({len(both)} in all)",
            "Take them out of one bank (generag bank remove), or rename them in a table (generag cohort scan) and "
            "build it again.",
        )
    refuse_names(sorted(names[1]), sorted(names[0]))
    content = {s["content"]: s["name"] for s in one.manifest["sections"] if s.get("content")}
    for section in two.manifest["sections"]:
        if twin := content.get(section.get("content", "")):
            raise BankError(
                f"section {section['name']} of {two.folder} has the very counts of {twin} of {one.folder}: one section "
                "under two names",
                f"Take one of them out: generag bank remove {section['name']} --bank {two.folder}",
            )


def _join_genes(one: _Source, two: _Source, genes: CommonGenes) -> GeneNames:
    """The genes of the new bank in the first's order, with their ids."""
    if genes == "equal" and not np.array_equal(one.genes, two.genes):
        odd = sorted({*one.manifest["genes"]} ^ {*two.manifest["genes"]})
        raise BankError(
            f"the gene lists of {one.folder} ({len(one.genes)}) and {two.folder} ({len(two.genes)}) differ in "
            + (", ".join(odd[:3]) or "their order"),
            "Merge on the genes that both have (--genes shared).",
        )
    named = one.genes[np.isin(one.genes, two.genes)]
    if not len(named):
        raise BankError(
            f"{one.folder} and {two.folder} share no gene; their first are {one.genes[0]} and {two.genes[0]}",
            "Are the genes of one named by symbol, those of the other by id?",
        )
    a, b = one.ids(named), two.ids(named)
    if len(torn := np.flatnonzero((a != b) & (a != "") & (b != ""))):
        raise BankError(
            f"{len(torn)} genes have other ids in {two.folder} than in {one.folder}, such as {named[torn[0]]}: "
            f"{a[torn[0]]} and {b[torn[0]]}",
            "Build one of the banks again with a table of names (--gene-aliases).",
        )
    ids = np.where(a != "", a, b)
    return GeneNames(named, ids if (ids != "").any() else None)


def _join_backbones(one: _Source, two: _Source, listener: Listener) -> list[str]:
    """Backbones that both banks have a version of, and that are the same in both."""
    both = [b for b in one.backbones if b in two.backbones]
    if not both:
        found = (f"{s.folder} has {', '.join(s.backbones) or 'none'}" for s in (one, two))
        raise BankError(
            f"no backbone is in both banks: {', '.join(found)}",
            "Add one to the other bank: generag build-bank TRAIN --backbone NAME.",
        )
    for backbone in both:
        cards = [source.manifest["backbones"][backbone]["card"] for source in (one, two)]
        for field in cards[0]:
            if field != "licence" and cards[0][field] != cards[1].get(field):
                raise BankError(
                    f"backbone {backbone} has {field} {cards[0][field]} in {one.folder}, {cards[1].get(field)} in "
                    f"{two.folder}",
                    "Embed one of the banks again with the other's.",
                )
    for source in (one, two):
        if alone := [b for b in source.backbones if b not in both]:
            listener.warn(f"{', '.join(alone)} is in {source.folder} only, and is left out")
    return both


def _tell(plan: _Plan, out: Path, listener: Listener, *, dry_run: bool) -> int:
    """Says what comes together; returns the number of sections."""
    chosen = [plan.entries(0), plan.entries(1)]
    patients = [{s["patient"] for s in entries} - {None} for entries in chosen]
    if both := sorted(patients[0] & patients[1]):
        listener.warn(f"patients {', '.join(both[:5])} are in both banks; each counts as one person")
    for source, entries in zip((plan.first, plan.second), chosen, strict=True):
        n_spots, of_genes = sum(s["n_spots"] for s in entries), f"{len(plan.genes)} of {len(source.genes)} genes"
        listener.say(f"{source.folder}: {n_spots} spots of {len(entries)} sections, {of_genes}")
        if waiting := [s["name"] for s in source.manifest["sections"] if s not in entries]:
            listener.warn(f"{', '.join(waiting[:5])} of {source.folder} are in no version of it, and are left out")
    total = len(chosen[0]) + len(chosen[1])
    verb = "would merge" if dry_run else "merging"
    listener.say(f"{verb} {total} sections into {out}, with {', '.join(plan.sections)}")
    return total


def _begin(writer: BankWriter, plan: _Plan) -> None:
    """A new bank, or the one that an earlier run began."""
    origin = [str(source.folder.resolve()) for source in (plan.first, plan.second)]
    one, two = plan.first.manifest, plan.second.manifest
    if writer.is_new:
        train = list(dict.fromkeys([*one["train"], *two["train"]]))
        asked = {k: v for k, v in one.get("asked", {}).items() if two.get("asked", {}).get(k) == v}
        writer.create(
            genes=plan.genes.names,
            gene_ids=plan.genes.ids,
            geometry=one["geometry"],
            train=train,
            merged_from=origin,
            species=one.get("species") or two.get("species"),
            asked=asked,
            skipped=[*one["skipped"], *two["skipped"]],
            dropped_genes={**one["dropped_genes"], **two["dropped_genes"]},
        )
    known = writer.manifest
    if known.get("merged_from") != origin or known["genes"] != plan.genes.names.tolist():
        raise BankError(f"{writer.folder} is another bank", "Name a folder that is not there yet with --bank.")


def _copy(
    writer: BankWriter, source: _Source, entry: dict[str, Any], places: Ints | None, backbones: list[str],
    listener: Listener,
) -> None:  # fmt: skip
    """One section with its thumbnails and embeddings, where they are not there yet."""
    name = entry["name"]
    there = writer.section(name)
    if there is None or there.get("copied") != entry["sha256"]:
        writer.copy_section(source.folder, {**entry, "copied": entry["sha256"]}, places)
    if not copy_thumbnails(writer, source.folder, entry):
        listener.warn(f"{name}: the thumbnails of {source.folder} are missing or cut short, and are left out")
    for backbone in backbones:
        known = source.manifest["backbones"][backbone]
        embeddings = known["sections"].get(name)
        if embeddings and not writer.embedded(BackboneCard(**known["card"]), name, embeddings["key"]):
            writer.copy_embeddings(source.folder, known["card"], name, embeddings)
