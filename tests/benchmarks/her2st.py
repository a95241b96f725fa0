"""Retrieval on real sections that the bank does not hold: HER2-positive breast tissue, each section left out in turn.

    python tests/benchmarks/her2st.py [--only C3] [--json FILE]

C2..C5 are held out one at a time, with B4 and the other C sections as bank (the patient is in the bank), and B4 with
C2..C5 as bank (a new patient). The held-out picture is written as a pyramidal TIFF and goes through `retrieve` like any
slide; every setting is the default of its preset. Beside retrieval stand its own first guess (y_init), the mean of the
50 nearest bank spots, and ridge regression from the same embeddings straight to all genes.
"""

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from setting import HER2ST, describe_machine, format_table, slide_of

from genrag_cli.backbones.base import Backbone
from genrag_cli.backbones.folds import fold_groups
from genrag_cli.backbones.probe import fit_head
from genrag_cli.backbones.registry import load_backbone
from genrag_cli.cohorts import open_cohort, open_section
from genrag_cli.cohorts.base import Cohort, Measured
from genrag_cli.evaluation import evaluate
from genrag_cli.genes.panels import N_GLOBAL
from genrag_cli.genes.scales import to_scale
from genrag_cli.outputs import keys
from genrag_cli.outputs.prediction import StoredPrediction, read_prediction
from genrag_cli.pipeline.bank_options import BankOptions
from genrag_cli.pipeline.build_bank import build_bank
from genrag_cli.pipeline.derive import standardise_sections
from genrag_cli.pipeline.embed import embeddings_path
from genrag_cli.pipeline.options import RunOptions, SlideOptions, SolveOptions, allotted_cpus
from genrag_cli.pipeline.query_space import QuerySpace, SlideStatistics
from genrag_cli.pipeline.retrieve import retrieve_slide
from genrag_cli.retrieval.dictionary import standardise
from genrag_cli.stores.bank import Bank
from genrag_cli.stores.embeddings import read_embeddings
from genrag_cli.types import Expression, Floats, Listener, Progress, Scale, Score, Strings

SAME_PATIENT = ("C2", "C3", "C4", "C5")
HELD_OUT = (*SAME_PATIENT, "B4")
BANK = ("B4", *SAME_PATIENT)
PRESETS = ("paper", "default")
CORE, GLOBAL = (10, 50, 300), (10, 50, 300, 1000, 5000)
N_NEIGHBOURS = 50
METHODS = ("y_init", "retrieval", "50 neighbours", "ridge to all", "shuffled", "library_size")
ALLOWED_LOSS = 0.01


@dataclasses.dataclass
class Stopwatch(Listener):
    """Adds up the seconds between what a pipeline says, by stage: `embed`, `retrieve` (with the search), `write`."""

    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    last: float = dataclasses.field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        """Ends a stage: what comes next has another name."""
        self._tick("")

    def progress(self, step: Progress) -> None:
        """Counts the time since the last word for this stage."""
        self._tick(step.stage.split()[0])

    def _tick(self, stage: str) -> None:
        now = time.monotonic()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self.last
        self.last = now


@dataclasses.dataclass(frozen=True, eq=False)
class Fold:
    """A held-out section and the bank that does not hold it."""

    held: str
    truth: str
    measured: Measured
    slide: Path
    bank: Bank
    groups: Strings
    rule: str
    """What the head leaves out to choose its strength; the ridge to all genes does the same."""


def main() -> None:
    """Runs the benchmark and prints its tables."""
    asked = read_arguments()
    with tempfile.TemporaryDirectory() as temporary:
        work = asked.work or Path(temporary)
        run = RunOptions(device=asked.device, workers=allotted_cpus())
        cohort = open_cohort(asked.data, patients="letter")
        backbone = load_backbone(asked.backbone, asked.device)
        print(f"machine: {describe_machine()}")
        print(f"backbone: {backbone.card.name} ({backbone.card.revision}), d = {backbone.card.dim}, {asked.device}\n")
        records = []
        for held in asked.only or HELD_OUT:
            fold = make_fold(cohort, held, work, backbone, run)
            about = {"held_out": held, "bank": [s["name"] for s in fold.bank.sections], "bank_spots": fold.bank.n_spots,
                     "genes": len(fold.bank.genes), "spots": len(fold.measured)}  # fmt: skip
            print(
                f"{held} held out: {about['spots']} spots; bank {' '.join(about['bank'])}: {about['bank_spots']} "
                f"spots, {about['genes']} genes, {len(fold.bank.anchors)} anchors; head by {fold.rule}",
                flush=True,
            )
            records += [{**about, **run_preset(fold, preset, work, backbone, run)} for preset in PRESETS]
    print_report(records)
    if asked.json:
        asked.json.write_text(json.dumps({"machine": describe_machine(), "runs": records}, indent=1) + "\n")


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HER2ST, help="cohort folder")
    parser.add_argument("--work", type=Path, help="folder for slides, banks and predictions, reused by a rerun")
    parser.add_argument("--backbone", default="lite0")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", action="append", choices=HELD_OUT, help="hold out this section alone; repeatable")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    return parser.parse_args()


def make_fold(cohort: Cohort, held: str, work: Path, backbone: Backbone, run: RunOptions) -> Fold:
    """Builds the bank of all sections but one, with the defaults, and writes the one as a slide."""
    folder = work / f"bank-without-{held}.zarr"
    left_out = tuple(s.name for s in cohort.sections if s.name == held or s.name not in BANK)
    build_bank([cohort], folder, [backbone], BankOptions(exclude=left_out), run, Listener())
    bank = Bank.open(folder, backbone.card.name)
    # As in the bank's own head; the centres would only matter for a bank of one section.
    groups, rule = fold_groups(bank.patient_of, bank.section_of, np.zeros((bank.n_spots, 2)))
    section, truth = cohort.section(held), f"{cohort.root}:{held}"
    measured = open_section(truth).load()
    return Fold(held, truth, measured, slide_of(section, work / "slides"), bank, groups, rule)


def run_preset(fold: Fold, preset: str, work: Path, backbone: Backbone, run: RunOptions) -> dict[str, Any]:
    """Retrieves the held-out section's spots in one preset and scores every method on them."""
    out = work / f"predicted-{fold.held}"
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{fold.held}.{backbone.card.name}.{preset}.h5ad"
    path.unlink(missing_ok=True)  # so that the seconds are of this run; embeddings of an earlier one are reused
    options = SolveOptions(preset=preset)  # type: ignore[arg-type]
    watch, began = Stopwatch(), time.monotonic()
    with QuerySpace.of(fold.bank, options, run, watch, scratch=out) as space:
        done = retrieve_slide(
            fold.slide, path, fold.bank, space, backbone, slide_options=SlideOptions(spots=fold.truth),
            solve_options=options, genes="all", expression=True, run=run, listener=watch,
        )  # fmt: skip
    total = time.monotonic() - began
    stored = read_prediction(path)
    features = slide_features(fold, out, backbone.card.name)
    scale = stored.expression.scale
    rivals = {
        "50 neighbours": average_neighbours(fold.bank, features, scale),
        "ridge to all": regress_all(fold, features, scale),
    }
    own = score(stored, stored.expression, fold.measured)
    scores = {m: panel_scores(own, m) for m in ("y_init", "retrieval", "shuffled", "library_size")}
    for name, values in rivals.items():
        expression = Expression(values, stored.names, fold.bank.genes, scale)
        scores[name] = panel_scores(score(stored, expression, fold.measured), "retrieval")
    return {
        "preset": preset,
        "scale": scale.name,
        "omega": options.weight,
        "alpha": float(stored.about["alpha"]),
        "statistics": stored.about["slide_statistics"],
        "head_strength": fold.bank.version["heads"][scale.name]["strength"],
        "mean_active": float(stored.codes.n_active.mean()),
        "median_active": done.median_refs,
        "worst_gap": done.worst_gap,
        "stalled": done.n_stalled,
        "embed_s": watch.seconds.get("embed", 0.0),
        "solve_s": watch.seconds.get("retrieve", 0.0),
        "total_s": total,
        "scores": {method: scores[method] for method in METHODS},
    }


def slide_features(fold: Fold, out: Path, backbone: str) -> Floats:
    """The held-out spots' embeddings, standardised as `retrieve` did: by the slide's own tissue."""
    spots, sample = (
        read_embeddings(embeddings_path(out, fold.slide.stem, backbone, kind)).values for kind in ("spots", "sample")
    )
    statistics = SlideStatistics.of(sample, fold.bank)
    return standardise(spots, statistics.mean, statistics.sd)


def bank_expression(bank: Bank, scale: Scale) -> Any:
    """CSR (N, G) of the bank in a scale."""
    import scipy.sparse as sp

    return sp.vstack([to_scale(counts, totals, scale) for _, counts, totals in bank.count_blocks()], format="csr")


def average_neighbours(bank: Bank, features: Floats, scale: Scale) -> Floats:
    """Mean expression of the 50 bank spots whose standardised embeddings are nearest (Euclidean)."""
    from scipy.spatial.distance import cdist

    nearest = cdist(features, np.concatenate(standardise_sections(list(bank.embeddings)))).argsort(axis=1)[
        :, :N_NEIGHBOURS
    ]
    expression = bank_expression(bank, scale)
    return np.stack([np.asarray(expression[rows].mean(axis=0)).ravel() for rows in nearest]).astype(np.float32)


def regress_all(fold: Fold, features: Floats, scale: Scale) -> Floats:
    """The head's own regression, to every gene of the bank instead of the anchors."""
    rows = np.concatenate(standardise_sections(list(fold.bank.embeddings)))
    head = fit_head(rows, bank_expression(fold.bank, scale), fold.groups, rule=fold.rule)
    return head.predict(features)


def score(stored: StoredPrediction, expression: Expression, measured: Measured) -> list[Score]:
    """Scores expression at the stored prediction's spots, on its panels."""
    var, genes = stored.var, stored.expression.genes
    rank = var[keys.VAR_RANK].to_numpy(np.int64)
    in_global = np.flatnonzero((rank >= 0) & (rank < N_GLOBAL))
    mean = var[keys.VAR_MEAN].to_numpy(np.float64)[None].astype(np.float32)
    return evaluate(
        expression, measured.counts, measured.genes, measured.names, measured.total_counts, to_scale=to_scale,
        anchors=stored.y_init.genes, global_panel=genes[in_global[np.argsort(rank[in_global])]],
        bank_mean=Expression(mean, np.array(["bank"]), genes, expression.scale), y_init=stored.y_init,
        allow_short=True,
    )  # fmt: skip


def panel_scores(scores: list[Score], method: str) -> dict[str, float | None]:
    """`core 10`, ..., `global 5000` and `undefined` (genes of the global panel without a correlation) of a method."""
    own = {(s.panel, s.metric): s.value for s in scores if s.method == method}
    wanted = [("core", k) for k in CORE] + [("global", k) for k in GLOBAL]
    found = {f"{panel} {k}": own.get((panel, f"PCC-{k}")) for panel, k in wanted}
    return {**found, "undefined": own.get(("global", "undefined"))}


def print_report(records: list[dict[str, Any]]) -> None:
    """Scores section by section, what each run took, and the means that the project is held to."""
    print("\nPCC-k of each method; y_init knows the anchors only, and what is constant over spots has no correlation\n")
    for preset in PRESETS:
        own = [r for r in records if r["preset"] == preset]
        rows = [
            (
                r["held_out"],
                method,
                cells(r["scores"][method], "core", CORE),
                cells(r["scores"][method], "global", GLOBAL),
                shortfall(r["scores"]) if method == "retrieval" else "",
            )
            for r in own
            for method in METHODS
        ]
        print(f"preset {preset} ({own[0]['scale']}, omega {own[0]['omega']:g}, {describe_strength(own)})\n")
        columns = ("held out", "method", "core PCC-10/50/300", "global PCC-10/50/300/1000/5000", "")
        print(format_table(columns, rows) + "\n")
        short = {r["held_out"]: r["scores"]["retrieval"]["undefined"] for r in own}
        print(
            "genes of the global panel without a correlation (left out of PCC-5000): "
            + ", ".join(f"{held} {n:.0f}" for held, n in short.items() if n is not None) + "\n"
        )  # fmt: skip
    rows = [
        (
            r["held_out"],
            r["preset"],
            *(f"{r[name]}" for name in ("bank_spots", "spots")),
            f"{r['mean_active']:.1f}",
            f"{r['worst_gap']:.1e}",
            f"{r['stalled']}",
            *(f"{r[name]:.1f}" for name in ("embed_s", "solve_s", "total_s")),
        )
        for r in records
    ]
    columns = ("held out", "preset", "bank spots", "spots", "mean references", "worst gap", "stalled", "embed s",
               "solve s", "total s")  # fmt: skip
    print(format_table(columns, rows))
    print("\nThe first preset embeds the slide, the second reuses it; solve holds the search for the strength.\n")
    for preset in PRESETS:
        print_means([r for r in records if r["preset"] == preset and r["held_out"] in SAME_PATIENT], preset)


def print_means(own: list[dict[str, Any]], preset: str) -> None:
    """Retrieval less y_init on the core panel, in the mean over the sections whose patient the bank knows."""
    if not own:
        return
    gains = np.array([gain(r["scores"]) for r in own])
    held = ", ".join(r["held_out"] for r in own)
    print(f"preset {preset}: retrieval - y_init, core PCC-10/50/300, mean over {held}: {signed(gains.mean(axis=0))}")
    if preset == "default":
        low = [
            f"{r['held_out']} PCC-{k} {g:+.3f}"
            for r, row in zip(own, gains, strict=True)
            for k, g in zip(CORE, row, strict=True)
            if g < -ALLOWED_LOSS
        ]
        worst = (gains.mean(axis=0) < -ALLOWED_LOSS).any()
        print(
            f"preset default: below y_init by more than {ALLOWED_LOSS:g}: in the mean {'YES' if worst else 'nowhere'}; "
            f"on single sections {', '.join(low) or 'nowhere'}"
        )


def describe_strength(own: list[dict[str, Any]]) -> str:
    """The penalty in the published code's terms."""
    alphas = [r["alpha"] for r in own]
    shown = f"{alphas[0]:.3g}" if np.ptp(alphas) < 1e-9 else f"{min(alphas):.3g} to {max(alphas):.3g}"
    return f"alpha {shown}, l1_ratio 0.9"


def gain(scores: dict[str, dict[str, float | None]]) -> list[float]:
    """Retrieval less y_init on core PCC-10, 50 and 300."""
    return [(scores["retrieval"][f"core {k}"] or 0.0) - (scores["y_init"][f"core {k}"] or 0.0) for k in CORE]


def shortfall(scores: dict[str, dict[str, float | None]]) -> str:
    """Where retrieval is below its own first guess, and by how much."""
    below = [f"PCC-{k} {g:+.3f}" for k, g in zip(CORE, gain(scores), strict=True) if g < 0]
    return f"BELOW y_init: {', '.join(below)}" if below else "above y_init"


def cells(scores: dict[str, float | None], panel: str, ks: tuple[int, ...]) -> str:
    """`.655/.630/.536`."""
    values = [scores[f"{panel} {k}"] for k in ks]
    return "-" if all(v is None for v in values) else "/".join("-" if v is None else short(v) for v in values)


def short(value: float) -> str:
    """Three places, no zero before the point."""
    return f"{value:.3f}".replace("0.", ".", 1)


def signed(values: Any) -> str:
    """`+.011/+.010/-.003`."""
    return "/".join(f"{v:+.3f}".replace("0.", ".", 1) for v in values)


if __name__ == "__main__":
    main()
