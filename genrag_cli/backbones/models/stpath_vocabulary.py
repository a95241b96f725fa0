"""What STPath calls its genes, organs and technologies, and which row or column each of them is.

Facts from Graph-and-Geometric-Learning/STPath (tokenization/ge_tokenizer.py and the tables of utils/constants.py, read
in public copies that agree). Knows no network.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genrag_cli.backbones.gene_list import read_gene_list
from genrag_cli.backbones.models.stpath_network import RESERVED
from genrag_cli.errors import BackboneError, UsageError, nearest
from genrag_cli.types import Ints, Strings

TECHS = ("<pad>", "Spatial Transcriptomics", "Visium", "Xenium", "Visium HD")
"""Rows of the table of technologies."""
ORGANS = (
    "<pad>", "<mask>", "<unk>", "Spinal cord", "Brain", "Breast", "Bowel", "Skin", "Heart", "Kidney", "Prostate",
    "Lung", "Liver", "Uterus", "Bone", "Muscle", "Eye", "Pancreas", "Mouth", "Ovary", "Glioma", "Glioblastoma",
    "Stomach", "Colon", "Others",
)  # fmt: skip
"""Rows of the table of organs."""
NOT_SAID = 0
"""The row that upstream takes where no organ or technology is given; it is the padding."""
_TECHS_TOO = {"ST": "Spatial Transcriptomics", "VisiumHD": "Visium HD"}
_LOWER = (
    "breast", "brain", "kidney", "heart", "skin", "liver", "pancreas", "mouth", "ovary", "prostate", "glioma",
    "glioblastoma", "stomach", "colon", "lung", "muscle",
)  # fmt: skip
_TO_OTHERS = (
    "Bladder", "Lymphoid", "Cervix", "Lymph node", "Ovary", "Embryo", "Lung/Brain", "Kidney/Brain", "Placenta",
    "Whole organism", "thymus", "joint", "undifferentiated pleomorphic sarcoma", "largeintestine", "lacrimal gland",
    "leiomyosarcoma", "endometrium", "brain+kidney", "cerebellum", "cervix", "colorectal", "lymphnode",
)  # fmt: skip
"""Names in the metadata of training that were trained as `Others`; `Ovary` of one collection is among them, `ovary` of
the other is not."""
_ORGANS_TOO = {name: name.capitalize() for name in _LOWER} | dict.fromkeys(_TO_OTHERS, "Others")


@dataclass(frozen=True, eq=False)
class GeneVocabulary:
    """Names that genes go by, and the column of the network of each."""

    names: Strings
    """(G,) symbols in the order of the file, then stable ids that are no symbol; several may be one column."""
    columns: Ints
    """(G,)"""


def read_vocabulary(path: str | Path, n_columns: int) -> GeneVocabulary:
    """Reads which gene is which column.

    Args:
        path: upstream's symbol2ensembl.json, where the columns are the sorted ids; or a list of all genes in the order
            of the columns, as `read_gene_list` takes it.
        n_columns: of the network, with the two that are no genes.

    Raises:
        BackboneError: for a file that cannot be read, or that is of another number of genes.
    """
    path, wanted = Path(path), n_columns - RESERVED
    if path.suffix.lower() != ".json":
        names = read_gene_list(path, "backbone stpath", expected=wanted)
        return GeneVocabulary(names, np.arange(wanted) + RESERVED)
    ids_of = _read_mapping(path)
    ids = sorted(set(ids_of.values()))
    if len(ids) != wanted:
        raise BackboneError(
            f"backbone stpath: {path} leads to {len(ids)} genes, the weights have {wanted}",
            "Give the symbol2ensembl.json that these weights were trained with: columns are places in its sorted ids.",
        )
    at = {gene: column for column, gene in enumerate(ids, start=RESERVED)}
    columns = {symbol: at[gene] for symbol, gene in ids_of.items()}
    columns |= {gene: column for gene, column in at.items() if gene not in columns}
    return GeneVocabulary(np.array(list(columns), np.str_), np.array(list(columns.values()), np.int64))


def find_organ(told: str | None, n_rows: int) -> int:
    """Row of an organ by name, or by its number.

    Upstream takes a name that its metadata does not use ("Stomach", "Others") for no organ at all, without a word; here
    it is the row of that name.

    Raises:
        UsageError: for a name or number that the table does not have.
    """
    return _find("organ", told, ORGANS, _ORGANS_TOO, n_rows)


def find_tech(told: str | None, n_rows: int) -> int:
    """Row of a technology by name, or by its number.

    Raises:
        UsageError: for a name or number that the table does not have.
    """
    return _find("tech", told, TECHS, _TECHS_TOO, n_rows)


def _find(key: str, told: str | None, rows: tuple[str, ...], too: dict[str, str], n_rows: int) -> int:
    if told is None:
        return NOT_SAID
    flag = f"--backbone-option {key}={told}"
    if told.isdecimal():
        if int(told) < n_rows:
            return int(told)
        raise UsageError(f"{flag}: the weights have rows 0 to {n_rows - 1}", f"Leave {key} out where it is not known.")
    if n_rows != len(rows):
        raise UsageError(
            f"{flag}: the weights have {n_rows} rows, {len(rows)} names are known",
            f"Give the number of the row: --backbone-option {key}=NUMBER.",
        )
    name = too.get(told, told)
    if name not in rows or name.startswith("<"):
        known = [row for row in rows if not row.startswith("<")] + list(too)
        raise UsageError(f"{flag}: stpath was not trained on it", nearest(told, known))
    return rows.index(name)


def _read_mapping(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise BackboneError(f"backbone stpath: no gene vocabulary at {path}", "Correct --backbone-option genes.")
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise BackboneError(f"backbone stpath: {path} cannot be read as JSON: {reason}", "Copy it again.") from error
    if not isinstance(held, dict) or not all(isinstance(gene, str) for gene in held.values()):
        raise BackboneError(
            f"backbone stpath: {path} does not say the id of each symbol",
            "Give upstream's symbol2ensembl.json, or a list of all genes in the order of the columns.",
        )
    return {str(symbol): gene for symbol, gene in held.items()}
