"""A protocol from end to end: folds, methods, scores, intervals, claims and leaks, as one record."""

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genrag_cli.evaluation.bootstrap import bootstrap_difference, bootstrap_sections, spatial_blocks
from genrag_cli.pipeline.options import FoldsBy, Preset
from genrag_cli.pipeline.protocols.claims import check_claims, rank_over_sections
from genrag_cli.pipeline.protocols.fold import METHODS, OWN, FoldResult, rows_of, run_fold, truth_of
from genrag_cli.pipeline.protocols.leakage import look_for_leaks
from genrag_cli.pipeline.protocols.plan import Held, Protocol, folds_by, plan_folds
from genrag_cli.pipeline.protocols.scoring import in_log, score_answer
from genrag_cli.pipeline.tuning.data import BankData
from genrag_cli.pipeline.tuning.search import CORE_KS, GLOBAL_KS
from genrag_cli.stores.atomic import write_json
from genrag_cli.stores.bank import Bank
from genrag_cli.types import COUNTS, LOG1P_CP10K, Floats, Listener, Progress, Scale, fingerprint

WAY = 1
"""Goes up when the same fold would be scored otherwise."""
EVERYTHING = 10**9
BLOCK_SIDE = 6
"""Spots along a side of the squares that a bootstrap draws: single spots are not independent of each other."""
METRICS = (*(f"core {k}" for k in CORE_KS), *(f"global {k}" for k in GLOBAL_KS))


@dataclass(frozen=True)
class Asked:
    """What is run."""

    protocols: tuple[Protocol, ...]
    presets: tuple[Preset, ...] = ("default",)
    inner: FoldsBy | None = None
    """What folds within leave out; None: what fits the protocol."""
    times: int = 200
    """Replicates of the bootstrap; 0: no intervals."""
    seed: int = 0
    allow_short: bool = False
    """Let PCC-k average fewer than k genes where fewer are defined; how many are undefined stands beside it."""


def run_protocols(bank: Bank, asked: Asked, folder: Path | None, listener: Listener) -> list[dict[str, Any]]:
    """Runs protocols over a bank; finished folds in `folder` are taken up.

    Args:
        bank: with all sections, trained and tested ones.
        asked: what.
        folder: for one JSON file per fold; None: nothing is kept.
        listener: told how far it is.

    Returns:
        a record per protocol and preset: `protocol`, `preset`, `scale`, `folds`, `rows` (per section and method),
        `summary` (per method), `claims`, `leaks`.
    """
    records = []
    for protocol in asked.protocols:  # what cannot be planned is refused before the long work
        plan_folds(protocol, bank.sections)
    for preset in asked.presets:
        scale = COUNTS if preset == "paper" else LOG1P_CP10K
        data = BankData.of(bank, EVERYTHING, scale)
        for protocol in asked.protocols:
            folds = plan_folds(protocol, bank.sections)
            listener.say(f"{protocol}, preset {preset}: {len(folds)} folds")
            done = []
            for number, held in enumerate(folds):
                by = folds_by(protocol, asked.inner)
                key = fingerprint(WAY, bank.fingerprint, preset, held, by, asked.seed, asked.times, asked.allow_short)
                file = None if folder is None else folder / f"{file_name(protocol)}.{preset}.{_word(held.name)}.json"
                found = _read(file, key)
                if found is None:
                    found = {"key": key, **one_fold(data, held, preset, by, asked, listener)}
                    if file is not None:
                        write_json(file, found)
                else:
                    listener.say(f"  {held.name}: done already")
                done.append(found)
                listener.progress(Progress(f"{protocol.kind}, {preset}", number + 1, len(folds)))
            records.append(sum_up(protocol, preset, scale, done))
    return records


def one_fold(
    data: BankData, held: Held, preset: Preset, by: FoldsBy, asked: Asked, listener: Listener
) -> dict[str, Any]:
    """Everything about one fold."""
    began = time.monotonic()
    result, answers = run_fold(
        data, held, published=preset == "paper", by=by, seed=asked.seed, listener=listener
    )  # fmt: skip
    truths = {section: truth_of(data, section, result.genes) for section in held.test}
    kept: dict[str, dict[int, Floats]] = {}
    rows = []
    for answer in answers:
        scores = score_answer(answer, truths[answer.section], result, data.scale, allow_short=asked.allow_short)
        rows.append({"section": str(data.names[answer.section]), "method": answer.method, **scores})
        if answer.values and answer.genes == "all":
            kept.setdefault(answer.method, {})[answer.section] = answer.values[0]
    order = list(METHODS)
    rows.sort(key=lambda r: (list(held.test).index(data.names.tolist().index(r["section"])), order.index(r["method"])))
    names = [str(data.names[i]) for i in held.test]
    claims = [c for i, n in zip(held.test, names, strict=True) if (c := check_claims(result, i, n)) is not None]
    both = {str(data.patients[i]) for i in held.test} & {str(data.patients[i]) for i in held.train} - {""}
    recipe = data.bank.version["recipe"]
    chosen_by = "chosen from the training sections" if recipe["names"] is None else "a list, the same in every fold"
    return {
        "fold": held.name, "test": names, "train": [str(data.names[i]) for i in held.train],
        "train_spots": len(result.fit.train),
        "test_spots": {n: len(rows_of(data, i)) for i, n in zip(held.test, names, strict=True)},
        "patients_both_sides": sorted(both), "settings": result.settings.words(), "settings_by": result.rule,
        "tried": len(result.tried), "inner_score": max((t.score for t in result.tried), default=None),
        "core_genes": len(result.core), "global_genes": len(result.wide),
        "panel": f"{recipe['source']}, {chosen_by}", "rows": rows, "claims": claims,
        "claims_over_sections": rank_over_sections(result),
        "leaks": [dataclasses.asdict(leak) for leak in look_for_leaks(data.bank, held)],
        "intervals": intervals(data, result, kept, truths, asked), "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip


def intervals(
    data: BankData, result: FoldResult, kept: dict[str, dict[int, Floats]], truths: dict[int, Floats], asked: Asked
) -> dict[str, Any]:
    """Bootstrap of the method itself, and of its lead over every other method, within this fold."""
    if not asked.times:
        return {}
    centres = data.centres()
    pitch = float(data.bank.geometry["pitch_um"])
    tested = list(result.held.test)
    patients = [str(data.patients[i]) or str(data.names[i]) for i in tested]
    blocks = [
        spatial_blocks(centres[rows_of(data, i)] * data.sections[i].entry["pixel_size"]["mpp"], pitch, BLOCK_SIDE)
        for i in tested
    ]
    out: dict[str, Any] = {}
    for panel, places, ks in (("core", result.core, CORE_KS), ("global", result.wide, GLOBAL_KS)):
        chosen = [k for k in ks if k <= len(places)]
        first = []
        for section, label in zip(tested, blocks, strict=True):
            p, t = in_log(kept[OWN][section][:, places], truths[section][:, places], data.scale)
            first.append((p, t, label))
        own = bootstrap_sections(first, chosen, times=asked.times, seed=asked.seed, groups=patients)
        for k in chosen:
            out.setdefault(OWN, {})[f"{panel} {k}"] = _plain(own[f"PCC-{k}"])
        for method, by_section in kept.items():
            if method in (OWN, "mean profile") or set(by_section) != set(tested):
                continue
            second = [in_log(by_section[i][:, places], truths[i][:, places], data.scale)[0] for i in tested]
            lead = bootstrap_difference(first, second, chosen, times=asked.times, seed=asked.seed, groups=patients)
            for k in chosen:
                out.setdefault(method, {})[f"{panel} {k}"] = _plain(lead[f"PCC-{k}"])
    return out


def sum_up(protocol: Protocol, preset: Preset, scale: Scale, folds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A protocol's record: per section first, the mean over the sections of a fold, then mean and spread over folds."""
    summary: dict[str, dict[str, Any]] = {}
    for method in METHODS:
        by_fold: dict[str, list[float]] = {}
        for fold in folds:
            own = [r for r in fold["rows"] if r["method"] == method]
            for metric in own[0] if own else ():
                values = [r[metric] for r in own]
                if metric not in ("section", "method") and all(v is not None for v in values):
                    by_fold.setdefault(metric, []).append(float(np.mean(values)))
        if any(r["method"] == method for fold in folds for r in fold["rows"]):
            summary[method] = {
                "folds": max((len(v) for v in by_fold.values()), default=0),
                **{m: float(np.mean(v)) for m, v in by_fold.items()},
                "spread": {m: float(np.std(v)) for m, v in by_fold.items()},
            }
    return {
        "protocol": str(protocol), "preset": preset, "scale": scale.name, "folds": list(folds), "summary": summary,
        "behind": _behind(summary, len(folds)),
    }  # fmt: skip


def _behind(summary: dict[str, dict[str, Any]], n_folds: int) -> list[dict[str, Any]]:
    """Where a baseline scores above the method, in the mean over folds."""
    judged = [m for m in summary if m not in (OWN, "first guess") and summary[m]["folds"] == n_folds]
    return [
        {"method": m, "metric": metric, "by": summary[m][metric] - summary[OWN][metric]}
        for m in judged
        for metric in METRICS
        if metric in summary[m] and metric in summary[OWN] and summary[m][metric] > summary[OWN][metric]
    ]


def _plain(interval: Any) -> dict[str, Any]:
    return {
        k: getattr(interval, k) for k in ("estimate", "low", "high", "level", "times", "resampled", "note")
    }  # fmt: skip


def file_name(protocol: Protocol) -> str:
    """Of files: protocols of one kind over other sections go by other names."""
    return protocol.kind + (f"-{fingerprint(protocol.sections)[:8]}" if protocol.sections else "")


def _word(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name)


def _read(file: Path | None, key: str) -> dict[str, Any] | None:
    if file is None or not file.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:  # cut off or not ours: done again
        return None
    return found if found.get("key") == key else None
