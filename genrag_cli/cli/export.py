"""`generag export`."""

from pathlib import Path
from typing import Annotated

import typer

from genrag_cli.cli import options as opt
from genrag_cli.cli.console import ConsoleListener, guarded


@guarded
def export(
    pred: Annotated[Path, typer.Argument(help="Prediction of `generag retrieve`.", show_default=False)],
    genes: opt.Genes = "5000",
    bank: Annotated[
        Path | None, typer.Option("--bank", help="Where the bank is now. Default: where it was.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="File to write. Default: beside the prediction, NAME.expression.h5ad."),
    ] = None,
    overwrite: opt.Overwrite = False,
    dry_run: opt.DryRun = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    debug: opt.Debug = False,  # noqa: ARG001 - read by `guarded`
) -> None:
    """Write expression of chosen genes from the weights of a prediction and its bank."""
    from genrag_cli.pipeline.export import export_expression

    listener = ConsoleListener(quiet=quiet, verbose=verbose)
    try:
        export_expression(pred, out, genes, bank, overwrite=overwrite, dry_run=dry_run, listener=listener)
    finally:
        listener.close()
