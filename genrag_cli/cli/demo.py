"""`generag demo`."""

from pathlib import Path
from typing import Annotated

import typer

from genrag_cli.cli import options as opt
from genrag_cli.cli.console import ConsoleListener, guarded
from genrag_cli.cli.evaluate import print_scores
from genrag_cli.cli.setup import make_run


@guarded
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for everything.")] = Path("generag-demo"),
    backbone: opt.BackboneName = opt.DEFAULT_BACKBONE,
    device: opt.Device = None,
    workers: opt.Workers = None,
    seed: opt.Seed = 0,
    overwrite: opt.Overwrite = False,
    dry_run: opt.DryRun = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    debug: opt.Debug = False,  # noqa: ARG001 - read by `guarded`
) -> None:
    """Run the main job on a made-up cohort: bank from two patients, prediction, score and picture of the third."""
    from genrag_cli.backbones.registry import load_backbone
    from genrag_cli.pipeline.demo import plan_demo, run_demo

    listener = ConsoleListener(quiet=quiet, verbose=verbose)
    if dry_run:
        plan_demo(out, backbone, listener)
        return
    run = make_run(listener, device=device, workers=workers, seed=seed, overwrite=overwrite)
    try:
        result = run_demo(out, lambda: load_backbone(backbone, run.device), run, listener)
    finally:
        listener.close()
    print_scores(result.scores, result.unit, verbose=verbose)
    for what, path in result.files.items():
        typer.echo(f"{what:<11} {path}")
    typer.echo(f"look at {result.files['picture']}: {', '.join(result.genes)}, predicted beside measured")
