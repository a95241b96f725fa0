"""`generag tune`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from genrag_cli.cli import options as opt
from genrag_cli.cli.console import ConsoleListener, guarded, print_json, print_table
from genrag_cli.pipeline.options import FoldsBy


@guarded
def tune(
    bank: Annotated[Path, typer.Argument(envvar="GENERAG_BANK", help="Bank to tune.")] = opt.DEFAULT_BANK,
    backbone: opt.BackboneName = opt.DEFAULT_BACKBONE,
    folds: Annotated[
        FoldsBy,
        typer.Option("--folds", help="What is left out together; auto: patients, else sections, else blocks of one."),
    ] = "auto",
    out: Annotated[
        Path | None, typer.Option("--plot", help="Draw the curves: .png, .pdf or .svg.", show_default=False)
    ] = None,
    workers: opt.Workers = None,
    seed: opt.Seed = 0,
    overwrite: opt.Overwrite = False,
    dry_run: opt.DryRun = False,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    debug: opt.Debug = False,  # noqa: ARG001 - read by `guarded`
) -> None:
    """Choose a bank's settings by folds within it, and learn which genes and spots to trust."""
    from genrag_cli.cli.setup import make_run
    from genrag_cli.pipeline.tuning.curves import draw_tuning, expect_picture
    from genrag_cli.pipeline.tuning.tune import tune_bank

    listener = ConsoleListener(quiet=quiet, verbose=verbose)
    make_run(listener, device="cpu", workers=workers, seed=seed)
    if out is not None:
        expect_picture(out)
    try:
        found = tune_bank(
            bank, backbone, by=folds, seed=seed, overwrite=overwrite, dry_run=dry_run, listener=listener
        )  # fmt: skip
    finally:
        listener.close()
    if out is not None and found.number:
        draw_tuning(out, found.about)
        listener.say(f"curves: {out}")
    if json:
        print_json({"bank": str(bank), "backbone": backbone, "tuning": found.number, **found.about})
    elif found.number:
        show(found.about, verbose=verbose)


def show(about: dict[str, Any], *, verbose: bool) -> None:
    """What was tried, best of each stage, and what sections left out are predicted like."""
    chosen = about["settings"]
    named = {k for t in about["tried"] for k in t if k not in ("stage", "score", "by_fold")}
    columns = [c for c in chosen if c in named]
    rows = []
    for stage in dict.fromkeys(t["stage"] for t in about["tried"]):
        own = sorted((t for t in about["tried"] if t["stage"] == stage), key=lambda t: -t["score"])
        rows += [(stage, *(f"{t[c]}" for c in columns), f"{t['score']:.4f}") for t in own[: None if verbose else 4]]
    print_table(f"tried, by stage ({about['rule']}, {about['n_folds']} folds)", ("stage", *columns, "score"), rows)
    typer.echo("")
    scores = about["scores"]
    print_table(
        f"chosen: expected on sections left out ({about['n_out_of_fold']} spots)",
        ("section", *(f"{k} PCC" for k in scores)),
        [(name, *map(_number, s.values())) for name, s in about["sections"].items()]
        + [("mean over folds", *map(_number, scores.values()))],
    )
    typer.echo(f"\n{about['n_predictable']} genes are predictable (q <= .05 against turned sections)")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
