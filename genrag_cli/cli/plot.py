"""`generag plot`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from genrag_cli.cli import options as opt
from genrag_cli.cli.console import ConsoleListener, guarded

Kind = Literal["maps", "ranks", "tuning"]


@guarded
def plot(
    pred: Annotated[
        Path,
        typer.Argument(help="Prediction of `generag retrieve`; for --kind tuning a bank too.", show_default=False),
    ],
    genes: Annotated[
        str | None,
        typer.Option("--genes", metavar="A,B", help="Up to 12 genes of the prediction. Default: three that differ."),
    ] = None,
    truth: Annotated[
        str | None,
        typer.Option(
            "--truth", metavar="FILE|COHORT:SECTION", help="Measured counts to draw beside: an .h5ad, or a section."
        ),
    ] = None,
    kind: Annotated[
        Kind,
        typer.Option(
            "--kind",
            help="maps: genes over the slide. ranks: correlation of all genes by rank, beside shuffled spots. "
            "tuning: what was tried when the bank was tuned.",
        ),
    ] = "maps",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE.png|pdf|svg",
            help="Picture to write or replace. Default: beside the prediction, NAME.KIND.png.",
        ),
    ] = None,
    seed: opt.Seed = 0,
    dry_run: opt.DryRun = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    debug: opt.Debug = False,  # noqa: ARG001 - read by `guarded`
) -> None:  # fmt: skip
    """Draw a prediction: some genes over the slide, or how well all of them agree with measured counts."""
    from genrag_cli.pipeline.plot import PlotRequest
    from genrag_cli.pipeline.plot import plot as draw

    names = tuple(dict.fromkeys(name.strip() for name in (genes or "").split(",") if name.strip()))
    if genes is not None and not names:
        raise typer.BadParameter("it names no gene", param_hint="--genes")
    target = out or pred.with_name(f"{pred.name.removesuffix(pred.suffix)}.{kind}.png")
    listener = ConsoleListener(quiet=quiet, verbose=verbose)
    draw(PlotRequest(pred, target, names, truth, seed, dry_run, listener), kind)
