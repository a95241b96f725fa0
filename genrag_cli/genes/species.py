"""What species the genes of a section say that it is.

Knows prefixes of Ensembl ids, prefixes that joint references put before names, and how symbols are written: in capitals
in human, with one capital in mouse and rat. The way of writing is weaker evidence than ids: pig, dog and macaque write
their symbols as human does. It does not know which gene exists in which species.
"""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from genrag_cli.errors import GeneragError
from genrag_cli.types import GeneNames

MIXED = "mixed"
"""Genes of two species side by side, as a joint reference for xenografts gives them."""

_ENSEMBL = re.compile(r"ENS([A-Z]{0,6})G\d{11}")
_BY_CODE = {
    "": "human", "MUS": "mouse", "RNO": "rat", "SSC": "pig", "CAF": "dog", "BTA": "cow", "DAR": "zebrafish",
    "GAL": "chicken", "MMU": "macaque", "MFA": "macaque", "OCU": "rabbit",
}  # fmt: skip
_GENOME = re.compile(r"_*(GRCh3[78]|hg19|hg38|GRCm3[89]|mm9|mm10|mm39|mRatBN7[.-]2|rn[67])_", re.IGNORECASE)
_BY_GENOME = {"grch": "human", "hg": "human", "grcm": "mouse", "mm": "mouse", "mratbn": "rat", "rn": "rat"}
# Clones, provisional names (LOC...) and RIKEN names are written alike in all species.
_PLAIN = re.compile(r"(?!LOC\d)[A-Za-z]{3,}\d*[A-Za-z]?")
_MITOCHONDRIAL = {"MT": "human", "mt": "mouse", "Mt": "rat"}
_SYNONYMS = {"homo sapiens": "human", "mus musculus": "mouse", "rattus norvegicus": "rat"}
_RODENTS = ("mouse", "rat")
_SPEAKS_AGAINST = {"human": _RODENTS, "mouse": ("human",), "rat": ("human",)}

_MIN_IDS = 5
_MIN_SYMBOLS = 20
_MIN_MITOCHONDRIAL = 3
_CLEAR = 0.9
_PRESENT = 0.05


@dataclass(frozen=True)
class Evidence:
    """What the names of genes say about their species."""

    species: str | None
    """`human`, `mouse`, another name in lower case, `mixed`, or None where the names do not tell."""
    why: str
    by: Literal["ids", "symbols", "nothing"] = "nothing"
    """What it rests on; `symbols` cannot tell species apart that write them alike."""


def species_of(names: GeneNames) -> Evidence:
    """Judges the species from the names and ids of genes.

    1. Prefixes of a joint reference (`GRCh38_TP53`, `mm10___Trp53`), where at least 5 % of the names have one.
    2. Ensembl ids, where there are at least 5: the species of at least 95 % of them, or `mixed` where a second one has
       5 % or more.
    3. Symbols: mitochondrial genes (`MT-` human, `mt-` mouse, `Mt-` rat; at least 3 of one kind and none of another)
       and letter case, of symbols that begin with three letters and may end in a number and a letter (ACTB, KRT19,
       RAB7A; not LOC100), at least 20: nine of ten in capitals is human, nine of ten with one capital is mouse; `mixed`
       where both are 5 % or more and neither is nine of ten. Where the two disagree, or there is neither, the species
       is unknown.

    Args:
        names: with any spelling; versions of ids do not matter.
    """
    listed: list[str] = names.names.tolist()
    prefixes = Counter(_of_genome(found[1]) for name in listed if (found := _GENOME.match(name)))
    if prefixes and prefixes.total() >= _PRESENT * len(listed):
        return _weigh(prefixes, prefixes.total(), "names with the prefix of a genome")
    ids = listed if names.ids is None else [i or n for n, i in zip(listed, names.ids.tolist(), strict=True)]
    codes = Counter(_of_code(found[1]) for text in ids if (found := _ENSEMBL.match(text)))
    if codes.total() >= _MIN_IDS:
        return _weigh(codes, codes.total(), "Ensembl ids")
    return _judge_symbols(listed)


def plain_name(species: str) -> str:
    """The common name of a species in lower case, where its Latin one is known; else what was given."""
    given = species.strip().lower()
    return _SYNONYMS.get(given, given)


def settle_species(stated: str | None, evidence: Evidence) -> str | None:
    """The species of a section from its metadata and its genes.

    Symbols contradict metadata only in what they can tell: capitals speak against a mouse or rat, and names with one
    capital against a human.

    Args:
        stated: by metadata, common or Latin name; None where they say nothing.
        evidence: of the genes.

    Returns:
        The stated species, else that of the genes, in lower case; None where neither is known.

    Raises:
        GeneragError: where the two contradict each other.
    """
    if stated is None or not stated.strip():
        return evidence.species
    species = plain_name(stated)
    found = evidence.species
    if found is None or found == species:
        return species
    if evidence.by == "symbols" and found in _SPEAKS_AGAINST and species not in _SPEAKS_AGAINST[found]:
        return species
    raise GeneragError(
        f"the metadata say {species}, the genes say {found}: {evidence.why}",
        "Correct the species in the metadata (or the manifest), or leave the section out (--exclude)."
        if found != MIXED
        else "Keep the columns of one species only, or leave the section out (--exclude).",
    )


def _weigh(counts: "Counter[str]", total: int, what: str) -> Evidence:
    ranked = counts.most_common()
    shown = " and ".join(f"{n} {species}" for species, n in ranked[:2])
    if len(ranked) > 1 and ranked[1][1] >= _PRESENT * total:
        return Evidence(MIXED, f"{shown} among {total} {what}", "ids")
    return Evidence(ranked[0][0], f"{ranked[0][1]} of {total} {what} are {ranked[0][0]}", "ids")


def _judge_symbols(names: list[str]) -> Evidence:
    mitochondrial = Counter(_MITOCHONDRIAL[n[:2]] for n in names if n[:2] in _MITOCHONDRIAL and n[2:3] in ("-", "."))
    letters = [name for name in names if _PLAIN.fullmatch(name)]
    capitals = sum(name.isupper() for name in letters)
    capitalised = sum(name[0].isupper() and name[1:].islower() for name in letters)
    why = f"{capitals} of {len(letters)} plain symbols are in capitals, {capitalised} have one capital"
    by_case = None
    if len(letters) >= _MIN_SYMBOLS:
        if capitals >= _CLEAR * len(letters):
            by_case = "human"
        elif capitalised >= _CLEAR * len(letters):
            by_case = "mouse"
        elif min(capitals, capitalised) >= _PRESENT * len(letters):
            return Evidence(MIXED, why, "symbols")
    by_mito = None
    if mitochondrial and mitochondrial.total() >= _MIN_MITOCHONDRIAL:
        by_mito = next(iter(mitochondrial)) if len(mitochondrial) == 1 else MIXED
        why += "; " + " and ".join(f"{n} mitochondrial genes are written as in {s}" for s, n in mitochondrial.items())
    if by_mito is None and by_case is None:
        few = f"; fewer than {_MIN_SYMBOLS} do not tell" if len(letters) < _MIN_SYMBOLS else ""
        return Evidence(None, why + few)
    if by_mito and by_case and (by_mito in _RODENTS) != (by_case in _RODENTS):
        return Evidence(None, f"{why}: they disagree")
    return Evidence(by_mito or by_case, why, "symbols")


def _of_code(code: str) -> str:
    return _BY_CODE.get(code) or f"ens{code.lower()}"


def _of_genome(genome: str) -> str:
    return _BY_GENOME[re.sub(r"[\d.-].*", "", genome.lower())]
