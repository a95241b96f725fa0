"""When two names are one gene: within a section, between a section and a bank, and over all sections of a cohort.

Knows symbols, Ensembl gene ids and a table that a person names. A gene goes by its symbol; one that has no symbol (its
name is an Ensembl id) is known by its id. Nothing matches by position, letter case is not folded, and which previous
symbol is which gene is not known here but in the person's table.
"""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from genrag_cli.errors import GeneragError
from genrag_cli.types import GeneNames, Ints, Strings, fingerprint

# ENSG (human), ENSMUSG (mouse), ...; then the version, which GENCODE's lifted annotation extends (.5_2).
_ENSEMBL = re.compile(r"(ENS[A-Z]{0,6}G\d{11})(?:\.\d+(?:_\d+)?)?(_PAR_Y)?")
_PREVIOUS = ("previous", "previous symbol", "previous symbols", "prev_symbol", "id", "gene_id", "ensembl_gene_id")
_SYMBOL = ("symbol", "approved symbol")
_TABLE = "Give a CSV or TSV with the columns previous,symbol; ids may stand among the previous (--gene-aliases)."


@dataclass(frozen=True, eq=False)
class Tidied:
    """The genes of a section, each under one name."""

    names: GeneNames
    """(n,) with unique names."""
    into: Ints
    """(G,) for each column of the source, the gene that it counts for."""
    notes: tuple[str, ...] = ()
    """What was done, for a person to read."""


@dataclass(frozen=True, eq=False)
class Match:
    """Where a section has the genes of a bank."""

    columns: Ints
    """(G,) column of the section for each gene of the bank; -1 where it has none."""
    conflicting: Strings
    """Genes of the bank whose symbol the section has under another id, or whose id it has twice: not matched."""
    by: Literal["symbol", "id"]
    """`id` where one side names its genes by id."""


@dataclass(frozen=True, eq=False)
class Shared:
    """The genes of several sections under one name each."""

    genes: GeneNames
    dropped: tuple[Strings, ...]
    """Of each section the genes that are not among them, in its order and by its names."""
    conflicting: Strings
    """Symbols that stand for different ids in different sections, and are left out."""
    by: Literal["symbol", "id"]
    """`id` where some section names its genes by id."""


def tidy(names: GeneNames, aliases: Mapping[str, str] | None = None) -> Tidied:
    """Brings the genes of a section under one name each.

    In this order: blanks around names go; Ensembl ids lose their version, but not `_PAR_Y`, which is another copy of
    the gene; a gene without a name goes by its id; names that are Ensembl ids serve as ids where these are absent, and
    ids that only repeat a symbol are none; names in the table become what it says; a gene named by id is the one of the
    section that has a symbol and the same id; and equal names are one gene, with the first id that one of them has.

    Args:
        names: of the source, repeated or not.
        aliases: previous symbol, or Ensembl id without version, to the symbol that it goes by here.

    Raises:
        GeneragError: for a gene with neither name nor id.
    """
    stated = [text.strip() for text in names.names.tolist()]
    stated_ids = [""] * len(stated) if names.ids is None else [text.strip() for text in names.ids.tolist()]
    bare, ids = [_bare(text) for text in stated], [_bare(text) for text in stated_ids]
    versioned = [
        a if a != b else c for a, b, c, d in zip(stated, bare, stated_ids, ids, strict=True) if (a, c) != (b, d)
    ]
    notes = []
    if versioned:
        notes.append(f"{_count(len(versioned), 'Ensembl id')} without the version (such as {versioned[0]})")
    if nameless := bare.count(""):
        notes.append(f"{_count(nameless, 'gene')} without a name, known by the id")
    called = [name or text for name, text in zip(bare, ids, strict=True)]
    if "" in called:
        raise GeneragError(f"gene {called.index('') + 1} of {len(called)} has neither a name nor an id")
    ids = [
        name if is_ensembl(name) and not text else "" if text == name and not is_ensembl(text) else text
        for name, text in zip(called, ids, strict=True)
    ]
    if renamed := [name for name in called if aliases and name in aliases]:
        assert aliases is not None
        called = [aliases.get(name, name) for name in called]
        example = f"{renamed[0]}, now {aliases[renamed[0]]}"
        notes.append(f"{_count(len(renamed), 'gene')} renamed by the table (such as {example})")
    pairs = reversed(list(zip(ids, called, strict=True)))  # so that the first symbol of an id stays
    symbols = {text: name for text, name in pairs if text and not is_ensembl(name)}
    called = [symbols.get(text, name) if is_ensembl(name) else name for name, text in zip(called, ids, strict=True)]
    return _fuse(called, ids, notes)


def _fuse(called: list[str], ids: list[str], notes: list[str]) -> Tidied:
    """Makes equal names one gene."""
    place: dict[str, int] = {}
    into = np.array([place.setdefault(name, len(place)) for name in called], dtype=np.int64)
    first_id: dict[str, str] = {}
    several = [n for n, text in zip(called, ids, strict=True) if text and first_id.setdefault(n, text) != text]
    if len(place) < len(called):
        example = list(place)[int(np.argmax(np.bincount(into) > 1))]
        notes.append(f"{_count(len(called) - len(place), 'column')} summed into another of the same gene ({example})")
    if several:
        notes.append(f"{_count(len(set(several)), 'gene')} with several ids, the first is kept ({several[0]})")
    found = GeneNames(_strings(place), _strings(first_id.get(n, "") for n in place) if first_id else None)
    return Tidied(found, into, tuple(notes))


def is_ensembl(name: str) -> bool:
    """Whether a name has the form of an Ensembl gene id."""
    return name.startswith("ENS") and _ENSEMBL.fullmatch(name) is not None


def sum_columns(counts: Any, into: Ints, n: int) -> Any:
    """Sums columns of a CSR matrix that count for one gene; the type of the counts stays.

    Args:
        counts: (rows, G) CSR.
        into: (G,) which of the n columns of the result each is added to.
        n: columns of the result.

    Returns:
        (rows, n) CSR; `counts` itself where nothing changes.
    """
    from scipy import sparse

    if len(into) != counts.shape[1]:
        raise GeneragError(f"{counts.shape[1]} columns of counts, {len(into)} genes to sum them into")
    if n == len(into) and np.array_equal(into, np.arange(n)):
        return counts
    moved = into[counts.indices].astype(counts.indices.dtype)
    summed = sparse.csr_matrix((counts.data.copy(), moved, counts.indptr.copy()), shape=(counts.shape[0], n))
    summed.sum_duplicates()
    return summed


def read_aliases(path: Path) -> dict[str, str]:
    """A table of names and the symbols that they go by, from a CSV or TSV with a header.

    Columns `previous,symbol`, also under HGNC's headers (`Previous symbol`, `Approved symbol`; `prev_symbol`, `symbol`)
    or `id,symbol`; further columns do not count. Several previous symbols in a cell are parted by `|` or commas. Rows
    without a previous symbol, or where both are the same, rename nothing.

    Raises:
        GeneragError: for a file that cannot be read, a name that leads to two symbols, and one that is itself a symbol
            of the table (a chain, a cycle, or a gene of its own).
    """
    try:
        rows = _read_rows(path)
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        raise GeneragError(f"{path}: cannot be read as a table of gene names ({error})", _TABLE) from error
    aliases: dict[str, str] = {}
    for previous, symbol in rows:
        if previous != symbol and aliases.setdefault(previous, symbol) != symbol:
            raise GeneragError(
                f"{path}: {previous} leads to two symbols, {aliases[previous]} and {symbol}", "Keep one of the rows."
            )
    symbols = {symbol for _, symbol in rows}
    if chained := [previous for previous in aliases if previous in symbols]:
        raise GeneragError(
            f"{path}: {_count(len(chained), 'name')} renamed that are symbols of the table themselves, such as "
            f"{chained[0]}, which becomes {aliases[chained[0]]}",
            "Let every row lead to the final symbol, and take out rows that rename a symbol in use.",
        )
    return aliases


def match(bank: GeneNames, section: GeneNames) -> Match:
    """Finds the genes of a bank in a section; both tidied.

    By symbol, and where one of the two has no symbol for a gene, by id. A symbol that both have under different ids is
    no match. No column serves two genes: those found by symbol come first, then the order of the bank.

    Raises:
        GeneragError: for repeated names, or where one side names its genes by id and the other has no ids.
    """
    by = _choose_key([bank, section], ["the bank", "the section"])
    names, ids = section.names.tolist(), _ids(section)
    wanted = list(zip(bank.names.tolist(), _ids(bank), strict=True))
    place = {name: column for column, name in enumerate(names)}
    if len(place) != len(names) or len({name for name, _ in wanted}) != len(wanted):
        raise GeneragError("repeated gene names cannot be matched", "Sum the columns of one gene first (genes.tidy).")
    columns = np.array([place.get(name, -1) for name, _ in wanted], dtype=np.int64)
    conflicting = []
    for row, column in enumerate(columns.tolist()):
        name, text = wanted[row]
        if column >= 0 and text and ids[column] and ids[column] != text:
            conflicting.append(name)
            columns[row] = -1
    free: dict[str, list[int]] = {}
    by_symbol = {name for name, _ in wanted} & place.keys()
    for column, (name, text) in enumerate(zip(names, ids, strict=True)):
        if text and name not in by_symbol:
            free.setdefault(text, []).append(column)
    for row, (name, text) in enumerate(wanted):
        if name in place or text not in free:
            continue
        fitting = [c for c in free[text] if is_ensembl(name) or is_ensembl(names[c])]
        if len(fitting) > 1:
            conflicting.append(name)
        elif fitting:
            columns[row] = fitting[0]
            free[text].remove(fitting[0])
    return Match(columns, _strings(conflicting), by)


def shared(sections: Sequence[GeneNames], names: Sequence[str]) -> Shared:
    """The genes that every section has, in the order of the first.

    Args:
        sections: genes of each, tidied.
        names: of the sections, for messages.

    Returns:
        Those genes by the rules of `match`, with the first id that is known; a gene that the first section knows only
        by its id has the symbol of the first section that has one. There may be none.

    Raises:
        GeneragError: for no section, repeated names, or sections named by id and by symbol without one that has both.
    """
    return _combine(sections, names, len(sections))


def united(sections: Sequence[GeneNames], names: Sequence[str]) -> Shared:
    """The genes that at least one section has, in order of first occurrence; otherwise as `shared`."""
    return _combine(sections, names, 1)


def _combine(sections: Sequence[GeneNames], names: Sequence[str], at_least: int) -> Shared:
    """The genes that `at_least` sections have. Sections with equal lists, as cohorts have many, are looked at once."""
    by = _choose_key(sections, names)
    alike: dict[str, list[int]] = {}
    for row, section in enumerate(sections):
        alike.setdefault(fingerprint(section.names, section.ids), []).append(row)
    lists = [(sections[rows[0]], rows) for rows in alike.values()]
    known, torn, symbols = _learn_ids([section for section, _ in lists])
    times: dict[str, int] = {}
    for section, rows in lists:
        keys = _keys(section, symbols)
        if len(set(section.names.tolist())) != len(keys):
            raise GeneragError(f"section {names[rows[0]]}: repeated gene names", "Sum the columns of one gene first.")
        for key in dict.fromkeys(keys):
            times[key] = times.get(key, 0) + len(rows)
    enough = [key for key, count in times.items() if count >= at_least]
    kept = {key: known.get(key, "") for key in enough if key not in torn}
    dropped = [_strings([])] * len(sections)
    for section, rows in lists:
        keys = _keys(section, symbols)
        lost = _strings(name for name, key in zip(section.names.tolist(), keys, strict=True) if key not in kept)
        for row in rows:
            dropped[row] = lost
    genes = GeneNames(_strings(kept), _strings(kept.values()) if any(kept.values()) else None)
    return Shared(genes, tuple(dropped), _strings(key for key in enough if key in torn), by)


def _keys(section: GeneNames, symbols: dict[str, str]) -> list[str]:
    """What each gene of a section is called among all sections."""
    names: list[str] = section.names.tolist()
    if not symbols:
        return names
    return [symbols.get(i, n) if is_ensembl(n) else n for n, i in zip(names, _ids(section), strict=True)]


def _learn_ids(sections: Sequence[GeneNames]) -> tuple[dict[str, str], set[str], dict[str, str]]:
    """What all sections together say of ids.

    Returns:
        the first id of each name; the names that have several; and for each id the first symbol that goes with it, one
        with several ids only where there is no other.
    """
    pairs: dict[tuple[str, str], None] = {}
    for section in sections:
        pairs.update(dict.fromkeys(zip(_ids(section), section.names.tolist(), strict=True)))
    known: dict[str, str] = {}
    torn = {name for text, name in pairs if text and known.setdefault(name, text) != text}
    named = [(text, name) for text, name in pairs if text and not is_ensembl(name)]
    symbols: dict[str, str] = {}
    for text, name in [*(pair for pair in named if pair[1] not in torn), *named]:
        symbols.setdefault(text, name)
    return known, torn, symbols


def _choose_key(sections: Sequence[GeneNames], names: Sequence[str]) -> Literal["symbol", "id"]:
    """`id` where some section names its genes by id; refuses what can then not be brought together."""
    if not sections:
        raise GeneragError("no section to take genes from")
    by_id = [_by_id(section) for section in sections]
    if not any(by_id):
        return "symbol"
    by_symbol_only = [not b and s.ids is None and len(s) > 0 for s, b in zip(sections, by_id, strict=True)]
    if any(by_symbol_only) and not any(map(_has_both, sections)):
        first, other = by_id.index(True), by_symbol_only.index(True)
        raise GeneragError(
            f"{names[first]} names its genes by id (such as {sections[first].names[0]}), {names[other]} by symbol "
            f"without ids (such as {sections[other].names[0]})",
            "Name a table that leads from the ids to symbols, with the columns id,symbol (--gene-aliases).",
        )
    return "id"


def _has_both(genes: GeneNames) -> bool:
    """Whether some gene has a symbol and an id."""
    if genes.ids is None:
        return False
    return any(i and not is_ensembl(n) for n, i in zip(genes.names.tolist(), genes.ids.tolist(), strict=True))


def _by_id(genes: GeneNames) -> bool:
    """Whether at least half of the names are Ensembl ids."""
    return 2 * sum(map(is_ensembl, genes.names.tolist())) >= len(genes) > 0


def _ids(genes: GeneNames) -> list[str]:
    """Each gene's id; a name that is an Ensembl id serves where no id is given."""
    names: list[str] = genes.names.tolist()
    ids: list[str] = [""] * len(names) if genes.ids is None else genes.ids.tolist()
    return [text or (name if is_ensembl(name) else "") for name, text in zip(names, ids, strict=True)]


def _bare(name: str) -> str:
    """An Ensembl id without its version; anything else as it is."""
    if not name.startswith("ENS") or "." not in name:
        return name
    found = _ENSEMBL.fullmatch(name)
    return found[1] + (found[2] or "") if found else name


def _read_rows(path: Path) -> list[tuple[str, str]]:
    """(previous, symbol) of every row that has both, and ("", symbol) of those that have a symbol only."""
    text = path.read_text(encoding="utf-8-sig")
    header = text.partition("\n")[0]
    table = list(csv.reader(io.StringIO(text, newline=""), delimiter="\t" if "\t" in header else ","))
    titles = [title.strip().lower() for title in table[0]] if table else []
    previous = next((titles.index(title) for title in _PREVIOUS if title in titles), None)
    symbol = next((titles.index(title) for title in _SYMBOL if title in titles), None)
    if previous is None or symbol is None:
        raise ValueError(f"no columns previous and symbol in its first line {header[:80]!r}")
    rows = []
    for number, row in enumerate(table[1:], 2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) <= max(previous, symbol) or not row[symbol].strip():
            raise ValueError(f"no symbol in line {number}")
        cells = [cell.strip() for cell in re.split(r"[|,]", row[previous]) if cell.strip()]
        rows += [(_bare(cell), row[symbol].strip()) for cell in cells] or [("", row[symbol].strip())]
    return [(previous or symbol, symbol) for previous, symbol in rows]


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _strings(values: Iterable[str]) -> Strings:
    return np.array(list(values), dtype=np.str_)
