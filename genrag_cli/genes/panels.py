"""Which genes are used: the core panel (anchors), the global panel, and panels from files.

Works on statistics over the bank's sections; a section that is predicted or scored must not be among them, and this
module cannot see whether it is.
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from genrag_cli.errors import GeneragError
from genrag_cli.genes.moments import GeneStatistics, pool_statistics
from genrag_cli.types import Doubles, Ints, Strings

N_CORE = 300
N_GLOBAL = 5000
MIN_DETECTED = 0.02
_N_PER_SECTION = 2000
_N_HIGHEST = 3000

# Mitochondrial genes carry a dash (MT-CO1, mt-Co1; R turns it into a dot). MTOR or MT2A do not.
_MITOCHONDRIAL = re.compile(r"^mt[-.]", re.IGNORECASE)
# Proteins of the cytosolic ribosome with their paralogues (RPS4Y1, RPL36AL, RPLP0, RPSA) and pseudogenes (RPL13AP5).
# RPS6KA1 and RPS19BP1 are other proteins, RPS10-NUDT3 is a read-through.
_RIBOSOMAL = re.compile(r"^rp[sl](a|p\d+|\d+(al?|l\d*|x|y\d*)?)(p\d+)?$", re.IGNORECASE)
# Probes that imaging platforms count beside genes; upper and lower case as HEST-bench matches them.
_CONTROL = re.compile(r"BLANK|Control")


def technical_genes(genes: ArrayLike) -> NDArray[np.bool_]:
    """(G,) whether a gene is mitochondrial, of the cytosolic ribosome, or a control probe, judged by its symbol.

    The published prefix filter (`MT`, `mt`, `RPS`, `RPL`) also takes MTOR, MTHFD2, MT2A or RPS6KA1; this one does not.
    """
    rules = (_MITOCHONDRIAL, _RIBOSOMAL, _CONTROL)
    named = [str(gene) for gene in np.asarray(genes)]
    return np.array([any(rule.search(gene) for rule in rules) for gene in named], dtype=bool)


def core_panel(genes: ArrayLike, sections: Iterable[GeneStatistics], n: int | None = N_CORE) -> Ints:
    """The `corrected` recipe for anchor genes.

    1. In each section, rank genes by variance; the best 2,000 of each section form a union.
    2. Drop technical genes (`technical_genes`) and genes detected in less than 2 % of all spots.
    3. Keep genes that are both among the 3,000 highest pooled means and among the 3,000 highest pooled sds.
    4. Of these, the n of largest pooled variance, in that order.

    Differences to the published recipe (GeneRAG notebook 02, after Stem): sections of the bank only, never the one that
    is predicted; the scale of the statistics (log1p CP10K by default) in every step instead of raw counts in 3 and 4,
    where depth decides; variance in place of scanpy's binned dispersion in 1; exact names in place of prefixes in 2;
    the detection floor in 2. Genes common to all sections are the caller's doing, in both.

    Args:
        genes: (G,) symbols.
        sections: statistics of each bank section over these genes, all in one scale; looked at once, one at a time.
        n: how many to keep; None: 300, or all where fewer pass.

    Returns:
        (n,) indices into `genes` by decreasing variance.

    Raises:
        GeneragError: where fewer than n genes are left.
    """
    rows, pooled = _core_candidates(genes, sections)
    if n is None:
        n = min(N_CORE, max(1, len(rows)))
    if len(rows) < n:
        raise GeneragError(
            f"{n} anchor genes asked for; {len(rows)} of {len(pooled.mean)} genes pass the recipe",
            f"Ask for at most {len(rows)} with --anchors, or give a list of genes." if len(rows) else "",
        )
    return rows[_highest(pooled.variance[rows], n)]


def global_panel(statistics: GeneStatistics, n: int = N_GLOBAL, min_detected: float = MIN_DETECTED) -> Ints:
    """The genes of largest variance among those detected in enough spots, in the scale of the statistics.

    Args:
        statistics: over all spots of the bank.
        n: how many to keep at most.
        min_detected: share of spots in which a gene must have a count.

    Returns:
        Indices by decreasing variance: n, or all that are detected and vary where that is fewer.
    """
    rows = np.flatnonzero((statistics.detected >= min_detected) & (statistics.sd > 0))
    return rows[_highest(statistics.variance[rows], n)]


def read_panel_file(path: Path) -> Strings:
    """Gene names from a file, in its order.

    Takes a text file with one symbol a line (blank lines and lines that start with # do not count), JSON
    {"genes": [...]} as HEST-bench has it, or a .npy array of strings; one that needs unpickling is refused.

    Raises:
        GeneragError: for a file that is missing, malformed or empty, or names a gene twice.
    """
    try:
        found = _read_names(path)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise GeneragError(f"{path}: cannot be read as a list of genes ({error})", _accepted()) from error
    names = [name.strip() for name in found]
    if not names or not all(names):
        raise GeneragError(f"{path}: {'an empty name in the list' if names else 'no genes'}", _accepted())
    unique, times = np.unique(names, return_counts=True)
    if len(repeated := unique[times > 1]):
        raise GeneragError(f"{path}: {len(repeated)} genes are named more than once, such as {repeated[0]}")
    return np.array(names, dtype=np.str_)


def _read_names(path: Path) -> list[str]:
    if path.suffix.lower() == ".npy":
        array = np.load(path, allow_pickle=False)
        if array.ndim != 1 or array.dtype.kind != "U":
            raise ValueError(f"an array of shape {array.shape} and type {array.dtype}, not a list of names")
        return [str(name) for name in array]
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() == ".json":
        content = json.loads(text)
        genes = content.get("genes") if isinstance(content, dict) else None
        if not isinstance(genes, list) or not all(isinstance(gene, str) for gene in genes):
            raise ValueError('no {"genes": [names]} in it')
        return genes
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _accepted() -> str:
    return 'Give one gene symbol a line, JSON {"genes": [...]}, or a .npy array of strings.'


def _highest(scores: Doubles, n: int) -> Ints:
    """Indices of the n highest scores, highest first; ties in the order of the columns."""
    return np.argsort(-scores, kind="stable")[:n]


def _core_candidates(genes: ArrayLike, sections: Iterable[GeneStatistics]) -> tuple[Ints, GeneStatistics]:
    """Genes that pass steps 1 to 3 of `core_panel`, in the order given, and the pooled statistics of all genes."""
    names = np.asarray(genes, dtype=np.str_)
    left = np.zeros(len(names), dtype=bool)

    def look() -> Iterator[GeneStatistics]:
        for section in sections:
            if len(names) != len(section.mean):
                raise GeneragError(f"{len(names)} gene names for statistics over {len(section.mean)} genes")
            left[_highest(section.variance, _N_PER_SECTION)] = True
            yield section

    pooled = pool_statistics(look())
    left &= ~technical_genes(names) & (pooled.detected >= MIN_DETECTED)
    for score in (pooled.mean, pooled.sd):
        among = np.zeros(len(names), dtype=bool)
        among[_highest(score, _N_HIGHEST)] = True
        left &= among
    left &= pooled.sd > 0
    return np.flatnonzero(left), pooled
