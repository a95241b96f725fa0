"""`--genes FILE|N|all`: which columns a prediction has, and what the bank knows about them."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.errors import UsageError
from genrag_cli.genes.align import columns
from genrag_cli.genes.moments import GeneStatistics
from genrag_cli.genes.panels import global_panel, read_panel_file
from genrag_cli.outputs import keys
from genrag_cli.pipeline.tuning.tuning import Tuning
from genrag_cli.stores.bank import Bank
from genrag_cli.types import Ints, Scale, Strings

_POSSIBLE = "Give names with commas between, a file of names, how many of the most variable, or all."
_FILES = (".txt", ".csv", ".tsv", ".json", ".npy")


def bank_statistics(bank: Bank, scale: Scale) -> GeneStatistics:
    """Mean, sd and detection of every gene over the bank's spots that measured it."""
    arrays = {n: bank.derived[f"genes/{scale.name}/{n}"] for n in ("mean", "sd", "detected")}
    return GeneStatistics(n_spots=bank.n_spots, spots=measured_spots(bank), **arrays)


def measured_spots(bank: Bank) -> Ints:
    """(G,) in how many of the bank's spots each gene was measured."""
    n_spots = np.array([section["n_spots"] for section in bank.sections], np.int64)
    each = np.broadcast_to(n_spots[:, None], bank.measured.shape)
    return np.asarray(np.sum(each, axis=0, where=bank.measured))


def choose_genes(bank: Bank, text: str, scale: Scale) -> Ints:
    """Columns of the bank.

    Args:
        bank: opened.
        text: `all` that some section measured; a number N for the N most variable genes (the global panel's order) over
            the spots that measured them; a file of names; or names separated by commas.
        scale: in which variance is taken.

    Raises:
        UsageError: for a number below 1, no name at all, a file that is not there, or genes that the bank lists and no
            section of this version measured.
        GeneragError: for names that the bank does not have, with the nearest ones.
    """
    if text == "all":
        return np.flatnonzero(measured_spots(bank))
    if text.lstrip("-").isdigit():
        if int(text) < 1:
            raise UsageError(f"--genes {text} asked; at least 1 is possible", _POSSIBLE)
        return global_panel(bank_statistics(bank, scale), int(text))
    chosen = columns(bank.genes, _read_names(text))
    known = measured_spots(bank) > 0
    if len(unknown := bank.genes[chosen[~known[chosen]]]):
        raise UsageError(
            f"--genes {text}: no section of the bank {bank.folder} measured {', '.join(unknown[:5])}",
            f"Leave {'it' if len(unknown) == 1 else f'these {len(unknown)} genes'} out.",
        )
    return chosen


def _read_names(text: str) -> Any:
    try:
        is_file = Path(text).is_file()
    except OSError:  # a list of names may be longer than a file's name can be
        is_file = False
    if is_file:
        return read_panel_file(Path(text))
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError(f"--genes {text!r} asked; it names no gene", _POSSIBLE)
    if len(names) == 1 and Path(names[0]).suffix.lower() in _FILES:
        raise UsageError(f"--genes {text}: no such file", _POSSIBLE)
    return names


def describe_genes(
    bank: Bank, chosen: Ints, scale: Scale, anchors: Strings, tuning: Tuning | None = None
) -> dict[str, NDArray[Any]]:
    """Columns of `var` for the chosen genes; `anchors` and `tuning` are those of the prediction."""
    statistics = bank_statistics(bank, scale)
    rank = np.full(len(bank.genes), -1, np.int64)
    order = global_panel(statistics, len(bank.genes))
    rank[order] = np.arange(len(order))
    named = {} if bank.gene_ids is None else {keys.VAR_IDS: bank.gene_ids[chosen].astype(object)}
    return named | {
        keys.VAR_ANCHOR: np.isin(bank.genes[chosen], anchors),
        keys.VAR_RANK: rank[chosen],
        keys.VAR_MEAN: statistics.mean[chosen],
        keys.VAR_SD: statistics.sd[chosen],
        keys.VAR_DETECTED: statistics.detected[chosen],
        keys.VAR_MEASURED: statistics.spots[chosen] / bank.n_spots,
        **({} if tuning is None else tuning.describe_genes(chosen)),
    }
