"""`generag retrieve`."""

import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genrag_cli.cli import options as opt
from genrag_cli.cli.batch import choose_jobs, make_batch, run_slides
from genrag_cli.cli.console import ConsoleListener, guarded
from genrag_cli.cli.setup import expect_alone, expect_one_voice, load_for_bank, make_run, open_bank
from genrag_cli.pipeline.options import Preset, Solving, Written

if TYPE_CHECKING:
    from genrag_cli.pipeline.batch.outcome import Outcome

_PANEL = "Retrieval"


@guarded
def retrieve(
    slides: opt.SlidesOrNone = None,
    backbone: opt.BackboneName = opt.DEFAULT_BACKBONE,
    weights: opt.Weights = None,
    backbone_option: opt.BackboneOptions = None,
    unsafe_pickle: opt.UnsafePickle = False,
    views: opt.Views = None,
    features: opt.Features = None,
    features_key: opt.FeaturesKey = None,
    same_encoder: opt.SameEncoder = False,
    anchors_from: opt.AnchorsFrom = None,
    anchors_key: opt.AnchorsKey = None,
    anchors_scale: opt.AnchorsScale = None,
    genes_from: opt.GenesFrom = None,
    names_from: opt.NamesFrom = None,
    anchor_scale: opt.AnchorScaleFrom = "bank",
    drop_missing_anchors: opt.DropMissing = False,
    bank: opt.Bank = opt.DEFAULT_BANK,
    out: opt.Out = Path(),
    genes: opt.Genes = "5000",
    expression: Annotated[Written, typer.Option("--expression", help="none keeps only the weights.")] = "values",
    preset: Annotated[Preset, typer.Option("--preset", help="Space and strength.", rich_help_panel=_PANEL)] = "default",
    omega: Annotated[
        float | None,
        typer.Option("--omega", help="Weight of morphology, 0 to 1. Default: the preset's.", rich_help_panel=_PANEL),
    ] = None,
    active: Annotated[
        int | None,
        typer.Option(
            "--active", help="References per spot in the median. Default: 50 in preset default.", rich_help_panel=_PANEL
        ),
    ] = None,
    alpha: Annotated[
        float | None, typer.Option("--alpha", help="Strength as the published code has it.", rich_help_panel=_PANEL)
    ] = None,
    lambda_: Annotated[
        float | None, typer.Option("--lambda", help="Strength as the paper has it.", rich_help_panel=_PANEL)
    ] = None,
    gamma: Annotated[
        float | None, typer.Option("--gamma", help="L2 share, with --lambda.", rich_help_panel=_PANEL)
    ] = None,
    signed: Annotated[bool, typer.Option("--signed", help="Allow negative weights.", rich_help_panel=_PANEL)] = False,
    gap: Annotated[
        float, typer.Option("--gap", help="Relative duality gap of every spot.", rich_help_panel=_PANEL)
    ] = 1e-4,
    strength_from: Annotated[
        Path | None,
        typer.Option(
            "--strength-from", help="Take the strength that an earlier prediction found.", rich_help_panel=_PANEL
        ),
    ] = None,
    untuned: Annotated[
        bool, typer.Option("--untuned", help="Leave the bank's tuned settings aside.", rich_help_panel=_PANEL)
    ] = False,
    solver: Annotated[
        Solving,
        typer.Option("--solver", help="dense: FISTA over all.", rich_help_panel=_PANEL),
    ] = "working-set",
    bank_memory: Annotated[
        float | None,
        typer.Option(
            "--bank-memory",
            min=0,
            metavar="GB",
            rich_help_panel="Run",
            help="Memory for the bank; a larger one streams from disk. Default: half of what is free.",
        ),
    ] = None,
    no_verify: Annotated[
        bool,
        typer.Option(
            "--no-verify", help="Do not compare the bank's files with their digests first.", rich_help_panel="Run"
        ),
    ] = False,
    spots: opt.Spots = None,
    mpp: opt.Mpp = None,
    strict_mpp: opt.StrictMpp = False,
    fov_um: opt.FovUm = None,
    pitch_um: opt.PitchUm = None,
    overlap: opt.Overlap = None,
    lattice: opt.LatticeKind = "square",
    tissue: opt.TissueHow = "density",
    min_tissue: opt.MinTissue = 0.5,
    max_bad_tiles: opt.MaxBadTiles = "1%",
    no_overlay: opt.NoOverlay = False,
    shard: opt.Shard = None,
    wait: opt.Wait = True,
    lease: opt.Lease = opt.DEFAULT_LEASE_S,
    stage: opt.StageFolder = None,
    device: opt.Device = None,
    workers: opt.Workers = None,
    seed: opt.Seed = 0,
    overwrite: opt.Overwrite = False,
    dry_run: opt.DryRun = False,
    json: opt.Json = False,
    events: opt.Events = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    debug: opt.Debug = False,
) -> None:
    """Predict expression for every tissue spot of slides, each value traceable to its reference spots."""
    from genrag_cli.pipeline.batch.inputs import Job
    from genrag_cli.pipeline.elsewhere import Elsewhere
    from genrag_cli.pipeline.guess import guessed_by
    from genrag_cli.pipeline.options import SlideOptions, SolveOptions
    from genrag_cli.pipeline.query_space import QuerySpace
    from genrag_cli.pipeline.retrieve import Retrieval
    from genrag_cli.pipeline.strength_from import strength_of
    from genrag_cli.pipeline.tuning.choice import choose_tuning
    from genrag_cli.stores.bank_check import verify_sections

    expect_one_voice(as_json=json, events=events)
    follows = os.environ.get("RANK", "0") != "0"  # another rank of torchrun leads
    listener = ConsoleListener(quiet=quiet or follows, verbose=verbose, events=events and not follows)
    slide_options = SlideOptions(
        mpp, strict_mpp, fov_um, pitch_um, spots, tissue, lattice, overlap, min_tissue, max_bad_tiles
    )
    solve_options = SolveOptions(
        preset, omega, active, alpha, lambda_, gamma, signed, gap, solver, anchor_scale, drop_missing_anchors
    )
    elsewhere = Elsewhere(
        features, features_key, same_encoder, anchors_from, anchors_key, anchors_scale, genes_from, names_from
    )
    elsewhere.expect_slides(slides or [])
    jobs = choose_jobs(slides or [], shard, listener)
    if strength_from is not None:
        solve_options = replace(
            solve_options,
            strength=strength_of(
                strength_from, solve_options, backbone=backbone, first_guess_from_file=anchors_from is not None
            ),
        )
    run = make_run(
        listener, device=device, workers=workers, seed=seed, overwrite=overwrite, dry_run=dry_run,
        bank_memory_gb=bank_memory,
    )  # fmt: skip
    opened = open_bank(bank, backbone)
    rows, foreign = elsewhere.read_features(), elsewhere.read_guess()
    loaded = None
    if rows is None:
        loaded = load_for_bank(
            opened, run.device, weights=weights, options=backbone_option, unsafe_pickle=unsafe_pickle, views=views,
            slide_options=slide_options,
        )  # fmt: skip
    else:
        expect_alone([backbone], weights, backbone_option, unsafe_pickle=unsafe_pickle, views=views)
        jobs = jobs or [Job("", rows.path.name.split(".")[0])]
    listener.say(f"{bank}: {opened.n_spots} spots of {len(opened.sections)} sections, version {opened.number}")
    if not (no_verify or dry_run or follows):
        verify_sections(opened, listener)
    scratch = out.parent if out.suffix in (".h5ad", ".zarr") else out
    guessed = guessed_by(loaded.backbone if loaded else None, foreign)
    tuning = choose_tuning(
        opened, solve_options, guessed=guessed is not None, untuned=untuned, listener=listener
    )  # fmt: skip
    batch = make_batch(run, jobs, wait=wait, lease_s=lease, stage=stage, overlay=not no_overlay, debug=debug)
    with QuerySpace.of(
        opened, solve_options, run, listener, scratch=scratch, guessed=guessed, own_anchors=foreign is None,
        tuning=tuning,
    ) as space:  # fmt: skip
        if space.solver.ranks.rank > 0:
            space.solver.serve()
            return
        work = Retrieval(
            opened, space, loaded, out, slide_options, solve_options, run, genes, expression == "values", foreign,
            rows, same_encoder, shlex.join(sys.argv),
        )  # fmt: skip
        run_slides(work, jobs, out, (".h5ad", ".zarr"), batch, listener, _describe, as_json=json)


def _describe(outcome: "Outcome") -> dict[str, Any]:
    """What `--json` says of a slide."""
    facts = outcome.status.facts
    named = ("median_references", "worst_gap", "stalled", "mean_passes")
    return {"prediction": str(outcome.target), **{name: facts.get(name) for name in named}}
