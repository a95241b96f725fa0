"""`generag evaluate`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from genrag_cli.cli import options as opt
from genrag_cli.cli.console import ConsoleListener, guarded, print_json, print_table
from genrag_cli.types import Score


@guarded
def evaluate(
    pred: Annotated[Path, typer.Argument(help="Prediction of `generag retrieve`.", show_default=False)],
    truth: Annotated[
        str,
        typer.Option(
            "--truth", metavar="FILE|COHORT:SECTION", help="Measured counts: an .h5ad, or a measured section."
        ),
    ],
    allow_short: Annotated[
        bool, typer.Option("--allow-short", help="Let PCC-k average fewer than k genes where fewer are defined.")
    ] = False,
    gene_aliases: opt.GeneAliases = None,
    seed: opt.Seed = 0,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    debug: opt.Debug = False,  # noqa: ARG001 - read by `guarded`
) -> None:
    """Score a prediction against measured counts, with the baselines that belong beside it."""
    from genrag_cli.pipeline.evaluate import evaluate_prediction
    from genrag_cli.pipeline.sections import GeneRules

    listener = ConsoleListener(quiet=quiet, verbose=verbose)
    scores, prediction = evaluate_prediction(
        pred, truth, allow_short=allow_short, seed=seed, listener=listener, rules=GeneRules(gene_aliases)
    )
    if json:
        about = {
            k: prediction.about[k] for k in ("unit", "preset", "backbone", "bank", "bank_version", "omega", "alpha")
        }
        print_json({
            "prediction": str(pred), "truth": truth, "about": about, "scores": [dataclasses.asdict(s) for s in scores],
        })  # fmt: skip
        return
    print_scores(scores, prediction.about["unit"], verbose=verbose)


def print_scores(scores: Sequence[Score], unit: str, *, verbose: bool = False) -> None:
    """One table per panel: methods down, metrics across; undefined values as a dash, their reasons below."""
    for panel in dict.fromkeys(s.panel for s in scores):
        own = [s for s in scores if s.panel == panel]
        metrics = list(dict.fromkeys(s.metric for s in own))
        rows = []
        for method in dict.fromkeys(s.method for s in own):
            cells = {s.metric: s for s in own if s.method == method}
            rows.append((method, *(_cell(cells.get(m)) for m in metrics)))
        first = own[0]
        print_table(
            f"{panel} panel: {first.n_genes} genes, {first.n_spots} spots, in {unit}", ("method", *metrics), rows
        )
        notes = dict.fromkeys(f"{s.method}: {s.note}" for s in own if s.note and (verbose or s.metric == "PCC-all"))
        for note in notes:
            typer.echo(f"  {note}")
        typer.echo("")


def _cell(score: Score | None) -> str:
    if score is None or score.value is None:
        return "-"
    if score.metric == "undefined":
        return f"{score.value:.0f}"
    return f"{score.value:.3f}" if abs(score.value) < 1000 else f"{score.value:.3g}"
