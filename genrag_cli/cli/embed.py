"""`generag embed`."""

from pathlib import Path

from genrag_cli.cli import options as opt
from genrag_cli.cli.batch import for_each_slide
from genrag_cli.cli.console import ConsoleListener, guarded
from genrag_cli.cli.setup import load_all, make_run


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
    device: opt.Device = None,
    workers: opt.Workers = None,
    overwrite: opt.Overwrite = False,
    dry_run: opt.DryRun = False,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    debug: opt.Debug = False,  # noqa: ARG001 - read by `guarded`
) -> None:
    """Turn the tissue of slides into embeddings: tissue -> grid in um -> tiles -> backbone."""
    from genrag_cli.pipeline.embed import embed_slide
    from genrag_cli.pipeline.options import SlideOptions
    from genrag_cli.stores.bank import read_manifest
    from genrag_cli.stores.layout import MANIFEST

    listener = ConsoleListener(quiet=quiet, verbose=verbose)
    options = SlideOptions(mpp, strict_mpp, fov_um, pitch_um, spots)
    run = make_run(listener, device=device, workers=workers, overwrite=overwrite, dry_run=dry_run)
    there = (bank / MANIFEST).exists() or bank != opt.DEFAULT_BANK
    manifest = read_manifest(bank) if there else None
    geometry = manifest["geometry"] if manifest else None
    (loaded,) = load_all(
        [backbone], run.device, weights=weights, options=backbone_option, unsafe_pickle=unsafe_pickle, views=views,
        manifest=manifest,
    )  # fmt: skip

    def one(slide: Path) -> dict[str, object]:
        path = embed_slide(slide, out, loaded.backbone, options, geometry, run, listener)
        return {"slide": str(slide), "embeddings": str(path)}

    for_each_slide(slides, out, (".zarr.zip",), one, listener, as_json=json)
