"""What makes retrieval accurate: variants beside each other on folds within training banks of her2st, nothing else.

    python tests/benchmarks/study.py [--without C2 --without C4] [--views-bank BANK]

Each bank leaves one C section out, which is never looked at. Within it, folds by sections (the patient is known) and by
patients (a new patient); scores are the mean of the project's PCC-k on the sections left out, each fold counting once.
"""

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from setting import HER2ST, describe_machine, format_table

from genrag_cli.backbones.context import mix_neighbours
from genrag_cli.backbones.folds import fold_groups
from genrag_cli.backbones.registry import load_backbone
from genrag_cli.backbones.regression import Moments, fit_moments, number_folds
from genrag_cli.cohorts import open_cohort
from genrag_cli.pipeline.bank_options import BankOptions
from genrag_cli.pipeline.build_bank import build_bank
from genrag_cli.pipeline.cpus import allotted_cpus
from genrag_cli.pipeline.options import RunOptions
from genrag_cli.pipeline.tuning.data import BankData, split
from genrag_cli.pipeline.tuning.model import Fit, Parts, Retriever, fit
from genrag_cli.pipeline.tuning.search import make_splits, score, scores_of
from genrag_cli.pipeline.tuning.settings import Settings
from genrag_cli.retrieval.solve import prepare
from genrag_cli.stores.bank import Bank
from genrag_cli.types import Floats, Ints, Listener, SparseCodes

SHOWN = ("core 10", "core 50", "core 300", "global 50", "global 300", "global 1000", "global 5000")


def main() -> None:
    """Builds the banks, scores every variant, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HER2ST)
    parser.add_argument("--without", action="append", help="section that a bank leaves out; repeatable (C2, C4)")
    parser.add_argument("--work", type=Path, help="folder for the banks, reused by a rerun")
    asked = parser.parse_args()
    print(f"machine: {describe_machine()}\n")
    began = time.monotonic()
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder, views = (asked.work or Path(temporary)) / "b.zarr", (asked.work or Path(temporary)) / "v7.zarr"
        make_bank(folder, asked.data, 1)
        make_bank(views, asked.data, 7)
        for without in asked.without or ["C2", "C4"]:
            for name, where in (("", folder), ("7 views: ", views)):
                data = BankData.of(Bank.open(where, "lite0"))
                train = np.flatnonzero(data.names[data.section_of] != without)
                for by in ("sections", "patients"):
                    folds, _ = split(data, train, by)  # type: ignore[arg-type]
                    for part in make_splits(data, train, folds):
                        for variant, values in fold_scores(data, part.train, part.asked, views=bool(name)):
                            found.setdefault(name + variant, {}).setdefault(by, []).append(values)
    report(found)
    print(f"\n{time.monotonic() - began:.0f} s")


def make_bank(folder: Path, data: Path, views: int) -> None:
    """All sections, embedded by lite0."""
    from genrag_cli.backbones.views import with_views

    backbone = with_views(load_backbone("lite0", "cpu"), views)
    cohort = open_cohort(data, patients="letter")
    build_bank([cohort], folder, [backbone], BankOptions(), RunOptions(workers=allotted_cpus()), Listener())


def fold_scores(
    data: BankData, train: Ints, asked: tuple[Ints, ...], *, views: bool
) -> Iterator[tuple[str, dict[str, float]]]:
    """Every variant's scores on one fold, mean over its sections."""
    for share_of_neighbours in (0.0, 0.5) if views else (0.0, 0.5, 0.7):
        name = f"neighbours {share_of_neighbours:g}" if share_of_neighbours else "no neighbours"
        settings = Settings(context=share_of_neighbours)
        model = fit(data, settings, train)
        retriever = Retriever.of(model, settings)
        parts = [retriever.parts(rows, retriever.ask(rows)[0]) for rows in asked]
        for share in (0.0, 0.5, 1.0) if not views else (0.5,):
            label = {0.0: "regression alone", 1.0: "retrieval alone"}.get(share, f"share {share:g} of retrieval")
            yield f"{name}, {label}", mean(model, parts, lambda p, s=share: p.predict(s))
        if share_of_neighbours == 0.5 and not views:
            yield from ablations(data, model, retriever, settings, asked, parts)


def ablations(
    data: BankData, model: Fit, retriever: Retriever, settings: Settings, asked: tuple[Ints, ...], parts: list[Parts]
) -> Iterator[tuple[str, dict[str, float]]]:
    """What was tried on top of neighbours .5 and share .5, and left out."""
    name = "neighbours 0.5, share 0.5"
    for share in (0.25, 0.75):
        yield f"neighbours 0.5, share {share:g} of retrieval", mean(model, parts, lambda p, s=share: p.predict(s))
    residual = out_of_fold_residuals(data, model)
    for weight in (0.25, 0.5, 1.0):
        yield (
            f"neighbours 0.5, regression + {weight:g} x retrieved out-of-fold residuals",
            mean(model, parts, lambda p, w=weight: p.regression + w * (p.codes.dense() @ residual)),
        )
    yield (
        f"{name}; codes smoothed over the neighbours",
        mean(model, parts, lambda p: smoothed(data, p.rows, p.predict(0.5))),
    )
    yield (
        f"{name}; active set debiased (refitted without penalty)",
        mean(model, parts, lambda p: recoded(retriever, p, debias(retriever, p)).predict(0.5)),
    )
    if len(np.unique(data.patients[data.section_of[model.train]])) > 1:
        yield (
            f"{name}; patients balanced in the weights (where two are there)",
            mean(model, parts, lambda p: recoded(retriever, p, balance(data, model, p.codes)).predict(0.5)),
        )
    guesses = model.guesses
    measured = data.anchors_in(model.anchors, settings.anchors_in, model.train)
    trust = guesses.std(axis=0) / np.maximum(measured.std(axis=0), 1e-6)
    for label, values, weigh in (
        ("anchors weighed by how predictable they are", measured, trust / np.sqrt(np.mean(trust**2))),
        ("predicted anchors in the bank", guesses, np.ones(len(trust))),
    ):
        blocks = dataclasses.replace(retriever.blocks, anchor_scale=retriever.blocks.anchor_scale * weigh)
        rows = blocks.rows(model.features[model.train], values)
        other = dataclasses.replace(retriever, blocks=blocks, scan=prepare(np.ascontiguousarray(rows.T)))
        changed = [other.parts(r, other.ask(r)[0]) for r in asked]
        yield f"{name}; {label}", mean(model, changed, lambda p: p.predict(0.5))


def mean(model: Fit, parts: list[Parts], predict: Callable[[Parts], NDArray[np.floating]]) -> dict[str, float]:
    """Scores over the sections of a fold; `all` is what settings are chosen by."""
    tables = []
    for part in parts:
        values = np.asarray(predict(part), np.float32)
        tables.append(
            {
                **{k: v or 0.0 for k, v in scores_of(model, values, part.truth).items()},
                "all": score(model, values, part.truth),
            }
        )
    return {key: float(np.mean([t[key] for t in tables])) for key in tables[0]}


def out_of_fold_residuals(data: BankData, model: Fit) -> Floats:
    """(n_train, g) expression less the regression that left the spot's section out."""
    train = model.train
    sections = data.names[data.section_of[train]]
    folds = number_folds(fold_groups([None] * len(train), sections, data.centres()[train])[0])
    expression = data.expression[train][:, model.genes]
    out = np.asarray(expression.toarray(), np.float32)
    moments = [Moments.of(model.scores[folds == k], expression[folds == k]) for k in range(int(folds.max()) + 1)]
    whole = sum(moments[1:], moments[0])
    for k, part in enumerate(moments):
        coef = fit_moments(whole - part, model.regression.strength)
        out[folds == k] -= model.scores[folds == k] @ coef[:-1] + coef[-1]
    return out


def smoothed(data: BankData, rows: Ints, values: Floats) -> Floats:
    """Half of a spot's own value and half of its neighbours' mean."""
    centres = data.centres()[rows]
    mpp = data.sections[data.section_of[rows[0]]].entry["pixel_size"]["mpp"]
    return mix_neighbours(values, centres * mpp, 1.5 * data.bank.geometry["pitch_um"], 0.5)[0]


def debias(retriever: Retriever, part: Parts) -> SparseCodes:
    """Weights >= 0 of least squares on each spot's references, with a little ridge."""
    from scipy.optimize import nnls

    codes, queries = part.codes, retriever.queries(part.rows)
    atoms = retriever.scan.atoms.rows.numpy()
    weights = codes.weights.copy()
    for i in range(len(codes)):
        own = slice(codes.indptr[i], codes.indptr[i + 1])
        d = atoms[codes.indices[own]].T.astype(np.float64)
        ridge = 0.1 * np.sqrt(np.mean(np.sum(d**2, axis=0))) if d.size else 0.0
        stacked = np.vstack([d, ridge * np.eye(d.shape[1])])
        weights[own] = nnls(stacked, np.concatenate([queries[i], np.zeros(d.shape[1])]))[0]
    return dataclasses.replace(codes, weights=weights.astype(np.float32))


def balance(data: BankData, model: Fit, codes: SparseCodes) -> SparseCodes:
    """Weights rescaled so that every patient with references has the same share of a spot's weight."""
    _, patient = np.unique(data.patients[data.section_of[model.train]], return_inverse=True)
    weights = codes.weights.copy()
    for i in range(len(codes)):
        own = slice(codes.indptr[i], codes.indptr[i + 1])
        who, total = patient[codes.indices[own]], float(weights[own].sum())
        sums = np.bincount(who, weights[own])
        weights[own] *= (total / np.count_nonzero(sums) / np.maximum(sums, 1e-12))[who]
    return dataclasses.replace(codes, weights=weights)


def recoded(retriever: Retriever, part: Parts, codes: SparseCodes) -> Parts:
    """The same spots with other codes."""
    return retriever.parts(part.rows, codes)


def report(found: dict[str, dict[str, list[dict[str, float]]]]) -> None:
    """A row per variant: the score by which settings are chosen, then single ones, for both kinds of folds."""
    for by, words in (("sections", "another section of known patients"), ("patients", "a new patient")):
        rows = []
        for variant, tables in found.items():
            if not (own := tables.get(by)):
                continue
            cells = [np.mean([t[key] for t in own if key in t]) for key in ("all", *SHOWN)]
            rows.append((variant, f"{len(own)}", f"{cells[0]:.4f}", *(f"{c:.3f}" for c in cells[1:])))
        print(f"folds by {by}: {words}\n")
        print(format_table(("variant", "folds", "mean", *SHOWN), rows) + "\n")


if __name__ == "__main__":
    main()
