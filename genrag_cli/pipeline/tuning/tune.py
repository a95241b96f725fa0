"""`generag tune`: settings of a bank by folds within it, stored in the bank with how they were found."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.errors import BankError
from genrag_cli.pipeline.options import FoldsBy
from genrag_cli.pipeline.tuning.data import BankData, split
from genrag_cli.pipeline.tuning.model import Fit, Retriever, fit
from genrag_cli.pipeline.tuning.search import STAGES, Tried, make_splits, search
from genrag_cli.pipeline.tuning.settings import Settings, describe
from genrag_cli.pipeline.tuning.trust import Trust, assess
from genrag_cli.pipeline.tuning.tuning import Tuning
from genrag_cli.stores.atomic import writer_lock
from genrag_cli.stores.bank import Bank
from genrag_cli.stores.bank_check import verify_sections
from genrag_cli.stores.bank_writer import BankWriter
from genrag_cli.stores.tunings import add_tuning
from genrag_cli.types import Listener, Progress, fingerprint

WAY = 1
"""Goes up when the same bank would be tuned otherwise."""


def tune_bank(
    folder: Path, backbone: str, *, by: FoldsBy, seed: int, overwrite: bool, dry_run: bool, listener: Listener
) -> Tuning:
    """Chooses settings for a bank's newest version and stores them in the bank.

    Args:
        folder: the bank.
        backbone: by name.
        by: what folds leave out; `auto`: patients, else sections, else spatial blocks of one section.
        seed: of which spots are asked about, and of the null.
        overwrite: again, where the version was tuned in this way already.
        dry_run: say the folds, and do nothing.
        listener: told what happens.

    Raises:
        BankError: where the bank is damaged, or cannot be read or written.
        UsageError: for folds that the bank does not have.
    """
    bank = Bank.open(folder, backbone)
    if bank.manifest["backbones"][backbone].get("predicts"):
        listener.warn(
            f"{backbone} guesses by itself, and folds are judged with guesses of the bank's own: retrieve will not use "
            "these settings for it"
        )
    key = tuning_key(bank, by, seed)
    there = None if overwrite else Tuning.read(bank)  # a damaged one is no reason not to tune again
    if there is not None and there.key == key:
        listener.say(f"{folder}: tuned already ({there.about['rule']}); --overwrite does it again")
        return there
    if dry_run:
        data = BankData.of(bank)
        folds, rule = split(data, np.arange(len(data)), by)
        listener.say(f"would tune {folder} with {int(folds.max()) + 1} folds ({rule})")
        return Tuning(0, Settings(), {}, {"rule": rule, "key": key, "tried": []})
    verify_sections(bank, listener)
    found = find_tuning(bank, by=by, seed=seed, listener=listener)
    with writer_lock(folder, BankError):
        writer = BankWriter(folder)
        versions = writer.manifest["backbones"].get(backbone, {}).get("versions", [])
        if len(versions) != bank.number or Bank.open(folder, backbone).fingerprint != bank.fingerprint:
            raise BankError(f"the bank {folder} was changed while it was tuned", "Tune again.")
        number = add_tuning(writer, backbone, bank.number, found.arrays, found.about)
    return dataclasses.replace(found, number=number)


def tuning_key(bank: Bank, by: FoldsBy, seed: int) -> str:
    """What a tuning depends on."""
    return fingerprint(WAY, bank.fingerprint, by, seed)


def find_tuning(bank: Bank, *, by: FoldsBy, seed: int, listener: Listener) -> Tuning:
    """Chooses settings for an opened bank and fits what they need to all of it."""
    data = BankData.of(bank)
    everything = np.arange(len(data))
    folds, rule = split(data, everything, by)
    splits = make_splits(data, everything, folds, seed=seed)
    n_asked = sum(len(rows) for part in splits for rows in part.asked)
    listener.say(f"{bank.folder}: folds by {_words(rule)}: {len(splits)}; settings are judged on {n_asked} spots")
    done = 0

    def tell(text: str) -> None:
        nonlocal done
        done += 1
        listener.progress(Progress("tune", done, len(STAGES)))
        listener.say(f"  {text}")

    best, tried = search(data, splits, Settings(), tell)
    trust = assess(data, splits, best.settings, seed, listener)
    fitted = fit(data, best.settings, everything, np.flatnonzero(data.common))
    about = {
        "key": tuning_key(bank, by, seed), "settings": best.settings.words(), "score": best.score, "rule": rule,
        "by": by, "n_folds": len(splits), "n_asked": n_asked, "seed": seed,
        "feature_scale": fitted.feature_scale, "regression_strength": fitted.regression.strength,
        "folds": [sorted({str(data.names[data.section_of[rows[0]]]) for rows in s.asked}) for s in splits],
        "tried": [record(t) for t in tried], "scores": trust.scores, "sections": trust.sections,
        "n_out_of_fold": trust.n_spots, "n_predictable": int(trust.predictable.sum()),
    }  # fmt: skip
    listener.say(f"chosen: {describe(best.settings)} (score {best.score:.4f})")
    return Tuning(0, best.settings, collect(data, fitted, best.settings, trust), about)


def collect(data: BankData, fitted: Fit, settings: Settings, trust: Trust) -> dict[str, NDArray[Any]]:
    """The arrays of `layout.TUNING`."""
    retriever_blocks = Retriever.of(fitted, settings).blocks
    mean = data.bank.derived["genes/log1p_cp10k/mean"]
    coef = np.zeros((len(fitted.regression.coef), len(mean)), np.float32)
    coef[-1] = mean
    coef[:, fitted.genes] = fitted.regression.coef
    return {
        "basis/centre": fitted.basis.centre, "basis/directions": fitted.basis.directions, "regression/coef": coef,
        "anchors/centre": retriever_blocks.anchor_centre, "anchors/scale": retriever_blocks.anchor_scale,
        "genes/oof_pcc": trust.oof_pcc, "genes/expected_pcc": trust.expected_pcc, "genes/q_value": trust.q_value,
        "genes/low": trust.low, "genes/high": trust.high, "spots/morphology": trust.morphology,
        "spots/anchor": trust.anchor,
    }  # fmt: skip


def record(tried: Tried) -> dict[str, Any]:
    """Flat values of one setting that was tried."""
    return {
        "stage": tried.stage, **tried.settings.words(), "score": tried.score, "by_fold": list(tried.by_fold),
    }  # fmt: skip


def _words(rule: str) -> str:
    return {
        "leave-one-patient-out": "patient", "leave-one-section-out": "section (the same patients are on both sides)",
        "spatial-blocks": "blocks of one section (the same patient and section are on both sides)",
    }.get(rule, rule)  # fmt: skip
