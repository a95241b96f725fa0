"""A protocol's record as tables, CSV and a figure."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from genrag_cli.outputs.figures import ScoreRow, draw_scores
from genrag_cli.pipeline.protocols.fold import METHODS, OWN
from genrag_cli.pipeline.protocols.run import METRICS

CLAIMS = (
    "section", "expected PCC against realised, Spearman (all genes, global)", "predictable genes: PCC, others",
    "90 % interval holds (all genes, global)", "flagged spots: error, others",
)  # fmt: skip
Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]
"""Title, columns, rows."""


LEADS_OVER = ("untuned", "regression beside it", "ridge, embedding to all", "ridge, anchors to all")
"""Methods whose distance from retrieval is shown with its interval; `--verbose` shows all."""


def tables(record: dict[str, Any], *, verbose: bool = False) -> Iterator[Table]:
    """The tables of a protocol in one preset: methods, what they were scored over, leads, claims."""
    summary, folds = record["summary"], record["folds"]
    head = f"{record['protocol']}, preset {record['preset']}"
    shown = [m for m in METRICS if any(m in s for s in summary.values())]
    rows = [
        (method, f"{s['folds'] or len(folds)}", *(_number(s.get(m)) for m in shown), _undefined(folds, method))
        for method, s in summary.items()
    ]
    yield (
        f"{head}: PCC-k, per section, mean over the sections of a fold, then over folds",
        ("method", "folds", *shown, "undefined"), rows,
    )  # fmt: skip
    yield (
        f"{head}: folds (both sides in {record['scale']}{_scored_as(record)}; PCC-k takes its k genes on the test "
        "section)",
        ("fold", "test sections", "spots", "trained on", "spots ", "patient on both sides", "panel", "settings by",
         "settings"),
        [_about_fold(f) for f in folds],
    )  # fmt: skip
    spread = [
        (method, *(f"{s['spread'][m]:.3f}" if m in s["spread"] else "-" for m in shown))
        for method, s in summary.items() if method == OWN or (record["preset"] == "default" and "ridge" in method)
    ]  # fmt: skip
    yield f"{head}: spread over folds (sd)", ("method", *shown), spread
    if any(f["intervals"] for f in folds):
        yield (
            f"{head}: retrieval less each method, 95 % intervals (bootstrap, fold by fold)",
            ("fold", "method", "core 50", "global 50", "global 1000", "drawn"),
            _leads(folds, METHODS if verbose else LEADS_OVER),
        )  # fmt: skip
    claims = [c for f in folds for c in f["claims"]]
    if claims:
        rows = [(c["section"], *about_claims(c)) for c in claims]
        rows += [_over_sections(f) for f in folds if f["claims_over_sections"]]
        yield f"{head}: what the training sections promised, on the test section", CLAIMS, rows


def notes(record: dict[str, Any]) -> list[str]:
    """Sentences that belong under the tables: leaks, exceptions, what cannot be scored."""
    said, summary = [], record["summary"]
    for fold in record["folds"]:
        said += [f"{fold['fold']}: {leak['text']}" for leak in fold["leaks"]]
    behind = record["behind"]
    if not any(metric in summary[OWN] for metric in METRICS):
        said.append("no PCC-k is defined: the panels are smaller than k, or too few genes vary")
    elif behind:
        listed = "; ".join(f"{b['method']}, {b['metric']}: {b['by']:.4f}" for b in behind)
        said.append(f"above retrieval in the mean over folds: {listed}")
    else:
        said.append("no other method is above retrieval on any of these metrics, in the mean over folds")
    flat = [m for m in ("library size", "mean profile") if m in summary]
    constant = [m for m in flat if not {"core all", "global all"} & set(summary[m])]
    if constant:
        said.append(f"{' and '.join(constant)}: constant over spots in this scale, so no correlation is defined")
    return said


def write_csv(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """One row per protocol, preset, fold, section and method."""
    rows = [
        {"protocol": r["protocol"], "preset": r["preset"], "scale": r["scale"], "fold": f["fold"], **row}
        for r in records
        for f in r["folds"]
        for row in f["rows"]
    ]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(text.getvalue(), encoding="utf-8")


def draw_record(path: Path, record: dict[str, Any]) -> bool:
    """Methods as dots, a panel per metric, bars from the lowest to the highest fold; False where there are none."""
    rows = []
    for method, s in record["summary"].items():
        for metric in ("core 10", "core 50", "core 300", "global 50", "global 300", "global 1000", "global 5000"):
            if metric not in record["summary"][OWN]:
                continue
            by_fold = _fold_values(record["folds"], method, metric)
            low, high = (min(by_fold), max(by_fold)) if len(by_fold) > 1 else (None, None)
            rows.append(ScoreRow(method, f"PCC {metric}", s.get(metric), low, high, own=method == OWN))
    if not rows:
        return False
    draw_scores(
        path, rows, title=f"{record['protocol']}, preset {record['preset']}",
        note=f"Mean over {len(record['folds'])} folds; bars from the lowest to the highest fold.",
    )  # fmt: skip
    return True


def _fold_values(folds: Sequence[dict[str, Any]], method: str, metric: str) -> list[float]:
    out = []
    for fold in folds:
        values = [r.get(metric) for r in fold["rows"] if r["method"] == method]
        if values and all(v is not None for v in values):
            out.append(sum(values) / len(values))
    return out


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _undefined(folds: Sequence[dict[str, Any]], method: str) -> str:
    counts = [
        r.get("global undefined") if r.get("global undefined") is not None else r.get("core undefined")
        for f in folds for r in f["rows"] if r["method"] == method
    ]  # fmt: skip
    known = [int(c) for c in counts if c is not None]
    return f"{min(known)}-{max(known)}" if known and min(known) < max(known) else f"{known[0]}" if known else "-"


def _scored_as(record: dict[str, Any]) -> str:
    return ", scored as ln(1 + x)" if record["scale"] == "counts" else ""


def _about_fold(fold: dict[str, Any]) -> tuple[str, ...]:
    s = fold["settings"]
    strength = f"alpha {s['alpha']:g}" if s["alpha"] else f"{s['references']} references"
    words = f"omega {s['omega']:g}, {strength}"
    words += f", context {s['context']:g}, ridge x {s['ridge']:g}, share {s['share']:g}" if not s["published"] else ""
    odd = [k for k, plain in (("standardise", "section"), ("centred", True), ("spread", True), ("l1_ratio", 0.9),
                              ("anchor_scale", "log1p_cp10k")) if not s["published"] and s[k] != plain]  # fmt: skip
    words += "".join(f", {k} {s[k]}" for k in odd)
    return (
        fold["fold"], " ".join(fold["test"]), str(sum(fold["test_spots"].values())), " ".join(fold["train"]),
        str(fold["train_spots"]), ", ".join(fold["patients_both_sides"]) or "no", fold["panel"], fold["settings_by"],
        words,
    )  # fmt: skip


def _leads(folds: Sequence[dict[str, Any]], methods: Iterable[str]) -> list[tuple[str, ...]]:
    rows = []
    for fold in folds:
        for method in methods:
            found = fold["intervals"].get(method)
            if method == OWN or not found:
                continue
            cells = []
            for metric in ("core 50", "global 50", "global 1000"):
                i = found.get(metric)
                fine = i is not None and i["low"] is not None and i["estimate"] is not None
                cells.append(f"{i['estimate']:+.3f} [{i['low']:+.3f}, {i['high']:+.3f}]" if fine else "-")
            if set(cells) == {"-"}:
                continue
            first = next(iter(found.values()))
            rows.append((fold["fold"], method, *cells, first["resampled"]))
    return rows


def about_claims(c: dict[str, Any]) -> tuple[str, ...]:
    """The cells of `CLAIMS` but the first."""

    def pair(one: float | None, other: float | None) -> str:
        return f"{_number(one)}, {_number(other)}"

    return (
        pair(c["spearman_all"], c["spearman_global"]),
        f"{c['n_predictable']}: {pair(c['pcc_predictable'], c['pcc_others'])}",
        pair(c["coverage_all"], c["coverage_global"]),
        f"{c['n_flagged']}: {pair(c['error_flagged'], c['error_others'])}",
    )  # fmt: skip


def _over_sections(fold: dict[str, Any]) -> tuple[str, ...]:
    c = fold["claims_over_sections"]
    return (
        f"mean of {c['sections']} ({fold['fold']})", f"{_number(c['spearman_all'])}, {_number(c['spearman_global'])}",
        "", "", "",
    )  # fmt: skip
