"""What is frozen when a bank is made: its genes, its species and its geometry."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from genrag_cli.cohorts import Section
from genrag_cli.errors import BankError, CohortError, UsageError
from genrag_cli.genes.identity import Match, match, shared, united
from genrag_cli.genes.species import plain_name
from genrag_cli.pipeline.options import MissingGenes
from genrag_cli.pipeline.sections import GeneRules, SectionGenes, read_genes
from genrag_cli.types import GeneNames, Listener, Progress, fingerprint


@dataclass(frozen=True, eq=False)
class FrozenGenes:
    """The gene list of a bank and how it came about."""

    genes: GeneNames
    species: str | None
    dropped: dict[str, int]
    """Genes of each section that the bank does not have."""


def freeze_genes(
    sections: Sequence[Section], rules: GeneRules, missing: MissingGenes, species: str | None, listener: Listener
) -> FrozenGenes:
    """The genes of a new bank, by name: those that every section measured, or with `mask` those that any did.

    Sorted, so that a bank depends neither on the order of its sections nor of their columns.

    Args:
        sections: of the bank.
        rules: when two names are one gene.
        missing: what becomes of a gene that some sections did not measure.
        species: as a person stated it; None: the one that all sections have.
        listener: told what is dropped.

    Raises:
        CohortError: for sections of different species, or without a gene in common.
    """
    named = []
    # Hundreds of sections of one panel have one list between them.
    lists: dict[str, GeneNames] = {}
    for number, section in enumerate(sections, 1):
        one = read_genes(section, rules)
        genes = lists.setdefault(fingerprint(one.names.names, one.names.ids), one.names)
        named.append(dataclasses.replace(one, names=genes))
        listener.progress(Progress("read gene names", number, len(sections)))
    names = [s.name for s in sections]
    settled = _settle_species(names, named, species, listener)
    found = (united if missing == "mask" else shared)([n.names for n in named], names)
    if not len(found.genes):
        raise CohortError(
            f"the {len(names)} sections share no gene; their first genes are "
            + ", ".join(str(n.names.names[0]) for n in named[:5]),
            "Are some named by another convention (symbols, Ensembl ids)? Name a table with --gene-aliases.",
        )
    lost = {name: len(d) for name, d in zip(names, found.dropped, strict=True)}
    if missing == "mask":
        listener.say(f"{len(found.genes)} genes are in at least one of {len(names)} sections")
    else:
        most = ", ".join(f"{name} {n}" for name, n in sorted(lost.items(), key=lambda i: -i[1])[:8] if n)
        dropped = f"most dropped: {most}" if most else "none is dropped"
        listener.say(f"{len(found.genes)} genes are in all {len(names)} sections; {dropped}")
        sizes = {name: len(n.names) for name, n in zip(names, named, strict=True)}
        if 2 * len(found.genes) < max(sizes.values()):
            few = min(sizes, key=lambda name: sizes[name])
            listener.warn(
                f"only {len(found.genes)} of up to {max(sizes.values())} genes are in all sections ({few} measured "
                f"{sizes[few]}); --missing-genes mask keeps the others, --exclude leaves sections out"
            )
    if len(found.conflicting):
        shown = ", ".join(found.conflicting[:5])
        listener.warn(
            f"{len(found.conflicting)} symbols stand for different ids in different sections and are left out: {shown}"
        )
    order = np.argsort(found.genes.names, kind="stable")
    ids = None if found.genes.ids is None else found.genes.ids[order]
    return FrozenGenes(GeneNames(found.genes.names[order], ids), settled, lost)


def match_section(
    bank: GeneNames, section: Section, genes: GeneNames, missing: MissingGenes, listener: Listener
) -> Match:
    """Where a section has the bank's genes.

    Raises:
        CohortError: for genes that it lacks, unless they are masked; or where it has none of them.
    """
    found = match(bank, genes)
    lacking = np.flatnonzero(found.columns < 0)
    if len(lacking) == len(bank):
        raise CohortError(f"section {section.name} has none of the bank's {len(bank)} genes")
    if len(lacking) and missing != "mask":
        shown = ", ".join(bank.names[lacking[:3]])
        raise CohortError(
            f"section {section.name} lacks {len(lacking)} of the bank's {len(bank)} genes, such as {shown}",
            "The gene list was frozen when the bank was made. Take the section in with those genes missing "
            "(--missing-genes mask), build a new bank with it, or --exclude it.",
        )
    if len(lacking):
        listener.say(f"{section.name}: {len(lacking)} of the bank's genes were not measured, and are missing there")
    return found


def expect_species(bank: str | None, section: str, found: SectionGenes) -> None:
    """Refuses a section of another species than the bank's.

    Raises:
        CohortError: where both are known and differ.
    """
    if bank and found.species and found.species != bank:
        raise CohortError(
            f"section {section} is {found.species} ({found.why}), the bank is {bank}",
            "Keep one species to a bank: --exclude the section, or build another bank.",
        )


def expect_stated_species(bank: str | None, stated: str | None, folder: object) -> None:
    """Refuses a species that was stated for a bank of another one.

    Raises:
        BankError: where the two differ.
    """
    if bank and stated and plain_name(stated) != bank:
        raise BankError(
            f"--species {stated} asked; the bank {folder} is {bank}", "Keep one species to a bank: name another --bank."
        )


def _settle_species(names: list[str], named: list[SectionGenes], stated: str | None, listener: Listener) -> str | None:
    by_species: dict[str, list[str]] = {}
    for name, found in zip(names, named, strict=True):
        if found.species:
            by_species.setdefault(found.species, []).append(name)
    stated = plain_name(stated) if stated else None
    if stated and (others := {k: v for k, v in by_species.items() if k != stated}):
        other, which = next(iter(others.items()))
        raise UsageError(f"--species {stated} asked; {', '.join(which[:5])} is {other}", "Exclude the other sections.")
    if len(by_species) > 1:
        shown = "; ".join(f"{k}: {', '.join(v[:5])}" for k, v in by_species.items())
        raise CohortError(
            f"the sections are of {len(by_species)} species ({shown})",
            "Keep one species to a bank: --exclude the others.",
        )
    settled = stated or next(iter(by_species), None)
    if settled is None:
        listener.warn("the species of the sections is unknown; name it with --species")
    return settled


def as_names(manifest: dict[str, Any]) -> GeneNames:
    """The gene list of a bank's manifest."""
    ids = manifest.get("gene_ids")
    return GeneNames(np.asarray(manifest["genes"], np.str_), None if ids is None else np.asarray(ids, np.str_))
