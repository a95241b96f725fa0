"""`generag build-bank`."""

from pathlib import Path
from typing import Annotated

import typer

from genrag_cli.cli import options as opt
from genrag_cli.cli.console import ConsoleListener, guarded
from genrag_cli.cli.setup import make_run


@guarded
def build_bank(
    train: Annotated[Path, typer.Argument(help="Folder of measured sections.", show_default=False)],
    bank: opt.Bank = opt.DEFAULT_BANK,
    backbone: Annotated[
        list[str] | None,
        typer.Option("--backbone", help="Backbone by name; repeat for several. Default: lite0.", show_default=False),
    ] = None,
    patients: opt.Patients = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", help="Section to leave out; repeat for several."),
    ] = None,
    anchors: Annotated[
        str | None,
        typer.Option("--anchors", metavar="FILE|N", help="Anchor genes: a file of names, or how many. Default: 300."),
    ] = None,
    panel: Annotated[str, typer.Option("--panel", help="Recipe that picks the anchor genes.")] = "corrected",
    fov_um: Annotated[
        float | None, typer.Option("--fov-um", help="Side of a tile in um. Default: twice the spot diameter.")
    ] = None,
    pitch_um: Annotated[
        float | None, typer.Option("--pitch-um", help="Distance of neighbouring spots in um. Default: the sections'.")
    ] = None,
    mpp: Annotated[
        float | None, typer.Option("--mpp", help="Pixel size of every section's image in um; found if left out.")
    ] = None,
    strict_mpp: opt.StrictMpp = False,
    format: opt.Format = None,  # noqa: A002 - a parameter is named like its flag
    device: opt.Device = None,
    workers: opt.Workers = None,
    seed: opt.Seed = 0,
    overwrite: opt.Overwrite = False,
    dry_run: opt.DryRun = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    debug: opt.Debug = False,  # noqa: ARG001 - read by `guarded`
) -> None:
    """Build a bank from a folder of measured sections, finish one, or add to one.

    Finished sections are skipped, so a rerun goes on where the last one stopped.
    """
    from genrag_cli.backbones.registry import load_backbone
    from genrag_cli.cohorts import open_cohort
    from genrag_cli.pipeline.build_bank import BankOptions
    from genrag_cli.pipeline.build_bank import build_bank as build
    from genrag_cli.pipeline.derive import AnchorOptions

    listener = ConsoleListener(quiet=quiet, verbose=verbose)
    cohort = open_cohort(train, patients=patients, format=format)
    listener.say(f"{train}: {len(cohort.sections)} sections ({cohort.format})")
    run = make_run(listener, device=device, workers=workers, seed=seed, overwrite=overwrite, dry_run=dry_run)
    backbones = [load_backbone(name, run.device) for name in dict.fromkeys(backbone or [opt.DEFAULT_BACKBONE])]
    made = BankOptions(
        fov_um=fov_um, pitch_um=pitch_um, mpp=mpp, strict_mpp=strict_mpp, exclude=tuple(exclude or ()),
        patients=patients, anchors=AnchorOptions.parse(anchors, panel),
    )  # fmt: skip
    try:
        build(cohort, bank, backbones, made, run, listener)
    finally:
        listener.close()
