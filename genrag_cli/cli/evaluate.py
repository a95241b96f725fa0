"""`generag evaluate`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from genrag_cli.cli import options as opt
from genrag_cli.cli.console import ConsoleListener, guarded, print_json, print_table
from genrag_cli.pipeline.options import FoldsBy
from genrag_cli.types import Score

_PROTOCOLS = "Protocols"


@guarded
def evaluate(
    what: Annotated[
        Path,
        typer.Argument(
            metavar="PRED|COHORT|BANK", show_default=False,
            help="Prediction of `generag retrieve` (with --truth), or measured sections or a bank (with --protocol).",
        ),
    ],
    truth: Annotated[
        str | None,
        typer.Option(
            "--truth", metavar="FILE|COHORT:SECTION", help="Measured counts: an .h5ad, or a measured section."
        ),
    ] = None,
    scoring: Annotated[
        str | None,
        typer.Option("--scoring", help="Score to the letter of a codebase too: stem, generag, hest-bench, genar."),
    ] = None,
    allow_short: Annotated[
        bool, typer.Option("--allow-short", help="Let PCC-k average fewer than k genes where fewer are defined.")
    ] = False,
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            "--protocol", metavar="KIND[:SECTIONS]", rich_help_panel=_PROTOCOLS,
            help="leave-patient-out, leave-section-out or fixed; with the sections that are tested (C2,C3), else all. "
            "Everything is chosen anew without them. Repeat.",
        ),
    ] = None,
    preset: Annotated[
        list[str] | None,
        typer.Option("--preset", help="default (if left out) or paper. Repeat.", rich_help_panel=_PROTOCOLS)
    ] = None,
    folds: Annotated[
        FoldsBy | None,
        typer.Option(
            "--folds", rich_help_panel=_PROTOCOLS,
            help="What folds within training sections leave out. Default: sections in leave-section-out, else auto.",
        ),
    ] = None,
    times: Annotated[
        int, typer.Option("--bootstrap", min=0, help="Replicates of the intervals.", rich_help_panel=_PROTOCOLS)
    ] = 200,
    backbone: opt.BackboneName = opt.DEFAULT_BACKBONE,
    patients: opt.Patients = None,
    bank: Annotated[
        Path | None,
        typer.Option("--bank", help="Where a cohort's bank is made (if left out: in --out), or a prediction's is now.",
                     rich_help_panel=_PROTOCOLS, show_default=False),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", help="Folder for records, CSV and figures.", rich_help_panel=_PROTOCOLS)
    ] = Path("generag-evaluation"),
    gene_aliases: opt.GeneAliases = None,
    device: opt.Device = None,
    workers: opt.Workers = None,
    seed: opt.Seed = 0,
    dry_run: opt.DryRun = False,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    debug: opt.Debug = False,  # noqa: ARG001 - read by `guarded`
) -> None:  # fmt: skip
    """Score a prediction against measured counts, or a bank by protocols, with the baselines that belong beside it."""
    from genrag_cli.errors import UsageError

    listener = ConsoleListener(quiet=quiet, verbose=verbose)
    if (truth is None) == (not protocol):
        raise UsageError(
            "one of --truth and --protocol is needed",
            "--truth scores a prediction; --protocol holds sections of a cohort or bank out, and predicts them.",
        )
    if truth is not None and dry_run:
        from genrag_cli.pipeline.evaluate import plan_evaluation

        plan_evaluation(what, truth, scoring, listener)
        if json:
            print_json({"prediction": str(what), "truth": truth, "dry_run": True})
        return
    if truth is not None:
        _one_prediction(
            what,
            truth,
            scoring,
            listener,
            allow_short=allow_short,
            aliases=gene_aliases,
            seed=seed,
            json=json,
            bank=bank,
        )
        return
    from genrag_cli.cli.setup import load_all, make_run
    from genrag_cli.pipeline.protocols.open import bank_of_cohort, is_bank
    from genrag_cli.pipeline.protocols.plan import Protocol, parse_presets
    from genrag_cli.pipeline.protocols.run import Asked, run_protocols
    from genrag_cli.stores.bank import Bank
    from genrag_cli.stores.bank_check import verify_sections

    if scoring is not None:
        raise UsageError("--scoring is for one prediction and its --truth", "Leave it out.")
    asked = Asked(
        tuple(Protocol.parse(text) for text in protocol or ()), parse_presets(preset or ["default"]), folds,
        times, seed, allow_short,
    )  # fmt: skip
    if dry_run:
        from genrag_cli.pipeline.protocols.open import plan_protocols

        planned = plan_protocols(
            what, backbone, bank or out / "bank.zarr", patients, out, asked.protocols, asked.presets, listener
        )
        if json:
            print_json({"protocols": planned, "dry_run": True})
        return
    run = make_run(listener, device=device, workers=workers, seed=seed)
    out.mkdir(parents=True, exist_ok=True)
    try:
        if is_bank(what):
            opened = Bank.open(what, backbone)
            verify_sections(opened, listener)
        else:
            (loaded,) = load_all(
                [backbone], run.device, weights=None, options=None, unsafe_pickle=False, views=None, manifest=None
            )  # fmt: skip
            opened = bank_of_cohort(what, bank or out / "bank.zarr", loaded, patients, run, listener, mine=bank is None,
                protocols=asked.protocols,
            )  # fmt: skip
        records = run_protocols(opened, asked, out, listener)
    finally:
        listener.close()
    _report(records, out, listener, json=json)


def _report(records: list[dict[str, Any]], out: Path, listener: ConsoleListener, *, json: bool) -> None:
    from genrag_cli.pipeline.protocols.plan import Protocol
    from genrag_cli.pipeline.protocols.report import draw_record, notes, tables, write_csv
    from genrag_cli.pipeline.protocols.run import file_name

    write_csv(out / "scores.csv", records)
    for record in records:
        picture = out / f"{file_name(Protocol.parse(record['protocol']))}.{record['preset']}.png"
        if draw_record(picture, record):
            listener.say(f"figure: {picture}")
    listener.say(f"every number: {out / 'scores.csv'}")
    if json:
        print_json({"records": records})
        return
    for record in records:
        for title, columns, rows in tables(record, verbose=listener.verbose):
            print_table(title, columns, rows, left=("section", "fold", "method", "panel", "settings"))
            typer.echo("")
        for note in notes(record):
            typer.echo(f"* {note}")
        typer.echo("")


def _one_prediction(
    path: Path, truth: str, scoring: str | None, listener: ConsoleListener, *, allow_short: bool,
    aliases: Path | None, seed: int, json: bool, bank: Path | None,
) -> None:  # fmt: skip
    from genrag_cli.pipeline.evaluate import evaluate_prediction
    from genrag_cli.pipeline.sections import GeneRules

    found = evaluate_prediction(
        path, truth, allow_short=allow_short, seed=seed, listener=listener, rules=GeneRules(aliases), scoring=scoring,
        bank_folder=bank,
    )  # fmt: skip
    about = found.prediction.about
    if json:
        kept = ("unit", "preset", "backbone", "bank", "bank_version", "omega", "alpha", "tuning")
        print_json({
            "prediction": str(path), "truth": truth, "about": {k: about[k] for k in kept if k in about},
            "scores": [dataclasses.asdict(s) for s in found.scores], "claims": found.claims,
            "leaks": [dataclasses.asdict(leak) for leak in found.leaks], "codebase": found.codebase,
        })  # fmt: skip
        return
    print_scores(found.scores, about["unit"], verbose=listener.verbose)
    if found.codebase is not None:
        _print_codebase(found.codebase)
    if found.claims is not None:
        _print_claims(found.claims)


def _print_codebase(found: dict[str, Any]) -> None:
    cells = {f"PCC-{k}": v for k, v in found["pcc"].items()} | {
        k.upper() if k != "mean" else "mean": found[k] for k in ("mean", "mse", "mae", "rvd")
    }
    print_table(
        f"as {found['codebase']} scores ({found['panel']} panel: {found['n_genes']} genes, {found['n_spots']} spots)",
        tuple(cells), [tuple("-" if v is None else f"{v:.4f}" for v in cells.values())],
    )  # fmt: skip
    for note in found["notes"]:
        typer.echo(f"  {note}")
    typer.echo("")


def _print_claims(claims: dict[str, Any]) -> None:
    from genrag_cli.pipeline.protocols.report import CLAIMS, about_claims

    print_table("what the bank promised of this section", CLAIMS[1:], [about_claims(claims)])


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
