"""`generag embed`."""

from pathlib import Path

from genrag_cli.cli import options as opt
from genrag_cli.cli.batch import for_each_slide
from genrag_cli.cli.console import ConsoleListener, guarded
from genrag_cli.cli.setup import make_run


@guarded
def embed(
    slides: opt.Slides,
    backbone: opt.BackboneName = opt.DEFAULT_BACKBONE,
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
    from genrag_cli.backbones.registry import load_backbone
    from genrag_cli.pipeline.embed import embed_slide
    from genrag_cli.pipeline.options import SlideOptions
    from genrag_cli.stores.bank import read_manifest
    from genrag_cli.stores.layout import MANIFEST

    listener = ConsoleListener(quiet=quiet, verbose=verbose)
    options = SlideOptions(mpp, strict_mpp, fov_um, pitch_um, spots)
    run = make_run(listener, device=device, workers=workers, overwrite=overwrite, dry_run=dry_run)
    loaded = load_backbone(backbone, run.device)
    there = (bank / MANIFEST).exists() or bank != opt.DEFAULT_BANK
    geometry = read_manifest(bank)["geometry"] if there else None

    def one(slide: Path) -> dict[str, object]:
        path = embed_slide(slide, out, loaded, options, geometry, run, listener)
        return {"slide": str(slide), "embeddings": str(path)}

    for_each_slide(slides, out, (".zarr.zip",), one, listener, as_json=json)
