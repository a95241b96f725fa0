"""What is known of a technology wherever its files come from: distance and size of its spots, names of its species.

Arrays have a pitch that nobody has to state. Xenium and Visium HD have cells and bins instead, which are pooled to
squares; the sizes here are those that HEST-1k pools to.
"""

import re
from collections.abc import Iterable

SPACING_UM = {"visium": (100.0, 55.0), "st": (200.0, 100.0)}
"""Technology to pitch and diameter of the spots of its array."""
POOLED_UM = {"xenium": 100.0, "visium-hd": 128.0}
"""Technology to the side of the squares that its cells or bins are pooled to where nothing else is asked."""
HD_BIN_UM = 16
"""Side of the bins of Visium HD that are read where nothing else is asked."""
_SPECIES = {"homo sapiens": "human", "mus musculus": "mouse"}
_GENOMES = (
    ("human", re.compile(r"GRCh3[678]|hg(18|19|38)", re.IGNORECASE)),
    ("mouse", re.compile(r"GRCm3[89]|mm(9|10|39)", re.IGNORECASE)),
    ("rat", re.compile(r"mRatBN7|Rnor_?\d|\brn\d", re.IGNORECASE)),
)


def name_species(stated: str) -> str:
    """A species as `Section.species` has it: in lower case, human and mouse by these names."""
    text = stated.strip().lower()
    return _SPECIES.get(text, text)


def find_species(genomes: Iterable[str]) -> str | None:
    """The species of reference genomes such as GRCh38 or mm10-2020-A; None where none is known or several are."""
    found = {species for genome in genomes for species, pattern in _GENOMES if pattern.search(genome)}
    return found.pop() if len(found) == 1 else None
