"""`generag build-bank`."""

from collections.abc import Sequence
from typing import Annotated

import typer

from genrag_cli.cli import options as opt
from genrag_cli.cli.console import ConsoleListener, guarded
from genrag_cli.cli.setup import expect_alone, load_all, make_run
from genrag_cli.pipeline.options import Crop, MissingGenes, UnknownPatient


@guarded
def build_bank(
    train: opt.Cohorts,
    bank: opt.Bank = opt.DEFAULT_BANK,
    backbone: Annotated[
        list[str] | None,
        typer.Option("--backbone", help="Backbone by name; repeat for several. Default: lite0.", show_default=False),
    ] = None,
    weights: opt.Weights = None,
    backbone_option: opt.BackboneOptions = None,
    unsafe_pickle: opt.UnsafePickle = False,
    views: opt.Views = None,
    features: opt.SectionFeatures = None,
    features_key: opt.FeaturesKey = None,
    names_from: opt.NamesFrom = None,
    patients: opt.Patients = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", help="Section to leave out; repeat for several."),
    ] = None,
    leave_out_patient: Annotated[
        list[str] | None,
        typer.Option("--leave-out-patient", help="Patient to leave out, with all sections; repeat for several."),
    ] = None,
    unknown_patient: Annotated[
        UnknownPatient | None,
        typer.Option(
            "--unknown-patient",
            help="section: a section of unknown patient counts as a patient of its own, and says so.",
        ),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Go on without sections that cannot be used; exit code 3.")
    ] = False,
    thumbnails: Annotated[
        bool,
        typer.Option(
            "--thumbnails",
            help="Keep small pictures of the spots in the bank, to be shown where the slides are out of reach.",
        ),
    ] = False,
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
    crop: Annotated[
        Crop | None,
        typer.Option(
            "--crop",
            help="fov: one field of view in um. stem: the published rule, at least 224 px at native resolution.",
        ),
    ] = None,
    species: Annotated[
        str | None, typer.Option("--species", help="Species of all sections, where it is not found out.")
    ] = None,
    missing_genes: Annotated[
        MissingGenes,
        typer.Option(
            "--missing-genes",
            help="A gene that a section lacks: refuse (a new bank takes the genes that all have), or mask it there.",
        ),
    ] = "refuse",
    gene_aliases: opt.GeneAliases = None,
    duplicate_genes: opt.DuplicateGenes = "sum",
    mpp: opt.SectionMpp = None,
    strict_mpp: opt.StrictMpp = False,
    spot_um: opt.SpotUm = None,
    bin_um: opt.BinUm = None,
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
    """Build a bank from folders of measured sections, finish one, or add to one.

    Finished sections are skipped, so a rerun goes on where the last one stopped; what the bank has stays in it.
    """
    from genrag_cli.backbones.registry import expect_known
    from genrag_cli.cohorts import Reading, open_cohort
    from genrag_cli.pipeline.anchors import AnchorOptions
    from genrag_cli.pipeline.bank_options import BankOptions
    from genrag_cli.pipeline.build_bank import build_bank as build
    from genrag_cli.pipeline.build_bank import plan_bank
    from genrag_cli.pipeline.embed_sections import FeatureFolder, Source
    from genrag_cli.pipeline.sections import GeneRules, PixelRules
    from genrag_cli.stores.bank import read_manifest
    from genrag_cli.stores.layout import MANIFEST

    listener = ConsoleListener(quiet=quiet, verbose=verbose)
    reading = Reading(spot_um, bin_um, mpp)
    made = BankOptions(
        fov_um=fov_um, pitch_um=pitch_um, crop=crop, pixels=PixelRules(mpp, strict_mpp),
        exclude=tuple(exclude or ()), leave_out_patients=tuple(leave_out_patient or ()), patients=patients,
        unknown_patient=unknown_patient, species=species,
        genes=GeneRules(gene_aliases, duplicate_genes),
        missing_genes=missing_genes,
        anchors=AnchorOptions.parse(anchors, panel), skip_bad=skip_bad, format=format, reading=reading,
        thumbnails=thumbnails,
    )  # fmt: skip
    cohorts = [open_cohort(path, patients=patients, format=format, reading=reading) for path in train]
    for cohort in cohorts:
        listener.say(f"{cohort.root}: {len(cohort.sections)} sections ({cohort.format})")
    run = make_run(listener, device=device, workers=workers, seed=seed, overwrite=overwrite, dry_run=dry_run)
    names = list(dict.fromkeys(backbone or [opt.DEFAULT_BACKBONE]))
    sources: Sequence[Source]
    if features is not None:
        expect_alone(backbone, weights, backbone_option, unsafe_pickle=unsafe_pickle, views=views)
        sources = [FeatureFolder(names[0], features, features_key, names_from)]
    elif dry_run:  # weights are not looked for: that might fetch them
        for name in names:
            expect_known(name)
        plan_bank(cohorts, bank, names, made, listener)
        return
    else:
        manifest = read_manifest(bank) if (bank / MANIFEST).exists() else None
        sources = load_all(
            names, run.device, weights=weights, options=backbone_option, unsafe_pickle=unsafe_pickle, views=views,
            manifest=manifest,
        )  # fmt: skip
    try:
        build(cohorts, bank, sources, made, run, listener)
    finally:
        listener.close()
