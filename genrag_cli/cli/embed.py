"""`generag embed`."""

from pathlib import Path

from genrag_cli.cli import options as opt
from genrag_cli.cli.batch import choose_jobs, make_batch, run_slides
from genrag_cli.cli.console import ConsoleListener, guarded
from genrag_cli.cli.setup import expect_one_voice, load_all, make_run


@guarded
def embed(
    slides: opt.Slides,
    backbone: opt.BackboneName = opt.DEFAULT_BACKBONE,
    weights: opt.Weights = None,
    backbone_option: opt.BackboneOptions = None,
    unsafe_pickle: opt.UnsafePickle = False,
    views: opt.Views = None,
    bank: opt.Bank = opt.DEFAULT_BANK,
    out: opt.Out = Path(),
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
    overwrite: opt.Overwrite = False,
    dry_run: opt.DryRun = False,
    json: opt.Json = False,
    events: opt.Events = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    debug: opt.Debug = False,
) -> None:
    """Turn the tissue of slides into embeddings: tissue -> grid in um -> tiles -> backbone."""
    from genrag_cli.pipeline.embed import ENDING, Embedding
    from genrag_cli.pipeline.options import SlideOptions
    from genrag_cli.stores.bank import read_manifest
    from genrag_cli.stores.layout import MANIFEST

    expect_one_voice(as_json=json, events=events)
    listener = ConsoleListener(quiet=quiet, verbose=verbose, events=events)
    options = SlideOptions(
        mpp, strict_mpp, fov_um, pitch_um, spots, tissue, lattice, overlap, min_tissue, max_bad_tiles
    )
    jobs = choose_jobs(slides, shard, listener)
    run = make_run(listener, device=device, workers=workers, overwrite=overwrite, dry_run=dry_run)
    there = (bank / MANIFEST).exists() or bank != opt.DEFAULT_BANK
    manifest = read_manifest(bank) if there else None
    geometry = manifest["geometry"] if manifest else None
    (loaded,) = load_all(
        [backbone], run.device, weights=weights, options=backbone_option, unsafe_pickle=unsafe_pickle, views=views,
        manifest=manifest,
    )  # fmt: skip

    batch = make_batch(run, jobs, wait=wait, lease_s=lease, stage=stage, overlay=not no_overlay, debug=debug)
    work = Embedding(loaded.backbone, out, options, geometry, run)
    run_slides(work, jobs, out, (ENDING,), batch, listener, lambda o: {"embeddings": str(o.target)}, as_json=json)
