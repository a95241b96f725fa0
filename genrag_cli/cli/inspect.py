"""`generag inspect`."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genrag_cli.cli import options as opt
from genrag_cli.cli.console import ConsoleListener, guarded, print_json, print_table, show_error
from genrag_cli.cli.setup import load_all, load_for_bank, make_run, open_bank
from genrag_cli.errors import BackboneError, BankError, GeneragError, SomeInputsFailed

if TYPE_CHECKING:
    from genrag_cli.pipeline.inspect import Against, Inspected
    from genrag_cli.pipeline.options import SlideOptions


@guarded
def inspect(
    slides: opt.Slides,
    backbone: opt.BackboneName = opt.DEFAULT_BACKBONE,
    weights: opt.Weights = None,
    backbone_option: opt.BackboneOptions = None,
    unsafe_pickle: opt.UnsafePickle = False,
    views: opt.Views = None,
    bank: opt.Bank = opt.DEFAULT_BANK,
    genes: opt.Genes = "5000",
    forecast: Annotated[
        bool, typer.Option("--forecast/--no-forecast", help="Time a few tiles and queries; else facts only.")
    ] = True,
    spots: opt.Spots = None,
    mpp: opt.Mpp = None,
    strict_mpp: opt.StrictMpp = False,
    fov_um: opt.FovUm = None,
    pitch_um: opt.PitchUm = None,
    overlap: opt.Overlap = None,
    lattice: opt.LatticeKind = "square",
    tissue: opt.TissueHow = "density",
    min_tissue: opt.MinTissue = 0.5,
    device: opt.Device = None,
    workers: opt.Workers = None,
    seed: opt.Seed = 0,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,  # noqa: ARG001 - read by `guarded`
) -> None:
    """Say what slides are, and what they will cost: seconds, memory and disk, from a few of their own tiles.

    Nothing is written. The forecast is an extrapolation, for the backbone and the bank on this machine as it is now.
    """
    from genrag_cli.pipeline.batch.inputs import find_jobs
    from genrag_cli.pipeline.inspect import inspect_slide, local_path
    from genrag_cli.pipeline.options import SlideOptions

    listener = ConsoleListener(quiet=quiet)
    options = SlideOptions(mpp, strict_mpp, fov_um, pitch_um, spots, tissue, lattice, overlap, min_tissue)
    jobs = find_jobs(slides)
    results: list[dict[str, Any]] = []
    failed: list[GeneragError] = []
    loading = {"weights": weights, "options": backbone_option, "unsafe_pickle": unsafe_pickle, "views": views}
    run = make_run(listener, device=device, workers=workers, seed=seed)
    with _against(bank, backbone, loading, options, run, listener, genes=genes, forecast=forecast) as against:
        for job in jobs:
            try:
                found = inspect_slide(local_path(job), job.settle(options), against)
            except GeneragError as error:
                failed.append(error)
                results.append({"slide": job.slide, "error": error.message, "hint": error.hint})
                if len(jobs) > 1:
                    show_error(error)
                continue
            results.append(describe(found))
            if not json:
                show(found, backbone)
        if json:
            machine = {"device": run.device, "threads": run.workers}
            print_json({
                "slides": results, "backbone": backbone, "bank": str(bank) if against.geometry else None,
                "machine": machine,
            })  # fmt: skip
    if failed and len(jobs) == 1:
        raise failed[0]
    if failed:
        names = ", ".join(str(one["slide"]) for one in results if "error" in one)
        kind = SomeInputsFailed if len(failed) < len(jobs) else GeneragError
        raise kind(f"{len(failed)} of {len(jobs)} slides cannot be used: {names}", "The reasons stand above.")


@contextlib.contextmanager
def _against(
    folder: Path, name: str, loading: dict[str, Any], options: "SlideOptions", run: Any, listener: ConsoleListener, *,
    genes: str, forecast: bool,
) -> "Iterator[Against]":  # fmt: skip
    """Backbone and bank as far as they are here; the rest is said to be missing, and nothing is fetched."""
    from genrag_cli.pipeline.backbones import describe_backbone
    from genrag_cli.pipeline.forecast import resident_bytes
    from genrag_cli.pipeline.guess import guessed_by
    from genrag_cli.pipeline.inspect import Against, expect_room
    from genrag_cli.pipeline.options import SolveOptions
    from genrag_cli.pipeline.query_space import QuerySpace
    from genrag_cli.pipeline.tuning.choice import choose_tuning
    from genrag_cli.stores.bank import read_manifest
    from genrag_cli.stores.layout import MANIFEST
    from genrag_cli.types import Listener

    missing: list[str] = []
    manifest = read_manifest(folder) if folder != opt.DEFAULT_BANK or (folder / MANIFEST).exists() else None
    if manifest is None:
        missing.append(f"bank: none at {folder}; build one (generag build-bank) or name it (--bank)")
    facts = describe_backbone(name)
    sheet, opened, loaded = facts.sheet, None, None
    if manifest is not None:
        try:
            opened = open_bank(folder, name)
        except BankError as error:
            missing.append(f"bank: {error.message}. {error.hint.splitlines()[-1]}")
    recorded = bool(((manifest or {}).get("backbones", {}).get(name, {}).get("loading") or {}).get("weights"))
    if forecast and facts.here in ("no", "part") and not (loading["weights"] or recorded):
        missing.append(f"weights of {name}: not on this machine; --weights FILE, or generag backbones fetch {name}")
    elif forecast:
        try:
            loaded = (
                load_all([name], run.device, manifest=manifest, **loading)[0] if opened is None
                else load_for_bank(opened, run.device, slide_options=options, **loading)
            )  # fmt: skip
        except BackboneError as error:
            missing.append(f"backbone {name}: {error.message}. {error.hint}")
    card = None if loaded is None else loaded.backbone.card
    base = Against(
        run, None if manifest is None else manifest["geometry"], loaded, None, None, genes, resident_bytes(),
        card.fov_um if card else sheet.fov_um if sheet else None,
        card.tile_px if card else sheet.tile_px if sheet else None, forecast, tuple(missing),
    )  # fmt: skip
    if opened is None or loaded is None or not forecast:
        yield base
        return
    if why := expect_room(opened):
        yield Against(**{**vars(base), "missing": (*base.missing, why)})
        return
    guessed = guessed_by(loaded.backbone, None)
    tuning = choose_tuning(opened, SolveOptions(), guessed=guessed is not None, listener=Listener())
    with QuerySpace.of(opened, SolveOptions(), run, listener, guessed=guessed, tuning=tuning) as space:
        yield Against(**{**vars(base), "bank": opened, "space": space})


def describe(found: "Inspected") -> dict[str, Any]:
    """For JSON: plain values, None for what is not known."""
    size, planned, cost = found.pixel_size, found.planned, found.forecast
    return {
        "slide": str(found.path), "reader": found.reader, "vendor": found.vendor,
        "width": found.size[0], "height": found.size[1],
        "levels": [
            {"width": level.width, "height": level.height, "downsample": level.downsample, "tile": level.tile}
            for level in found.levels
        ],
        "mpp": float(size.mpp), "mpp_source": size.source,
        "mpp_others": [{"source": source, "mpp": value} for source, value in size.others],
        "tissue_share": found.tissue_share,
        "spots": None if planned is None else planned.spots,
        "grid": None if planned is None else {
            "fov_um": planned.fov_um, "pitch_um": planned.pitch_um, "tile_px": planned.tile_px,
            "beyond_edge": planned.beyond_edge,
        },
        "forecast": None if cost is None else {
            "seconds": cost.total_s, "seconds_by_stage": cost.seconds, "memory_bytes": cost.memory_bytes,
            "disk_bytes": cost.disk_bytes, "extrapolated_from": cost.measured, "not_counted": list(cost.left_out),
        },
        "missing": list(found.missing), "notes": list(found.notes),
    }  # fmt: skip


def show(found: "Inspected", backbone: str) -> None:
    """The facts as lines, the pyramid as a table, the forecast below."""
    size, planned, cost = found.pixel_size, found.planned, found.forecast
    typer.echo(f"{found.path}: {found.size[0]} x {found.size[1]} px, read by {found.reader} ({found.vendor})")
    others = ", ".join(f"{value:.4g} ({source})" for source, value in size.others)
    typer.echo(f"  pixel size: {size.mpp:.4g} um/px ({size.source})" + (f"; also said: {others}" if others else ""))
    typer.echo(f"  tissue: {found.tissue_share:.1%} of the slide")
    if planned is not None:
        typer.echo(
            f"  spots: {planned.spots} every {planned.pitch_um:g} um, tiles of {planned.fov_um:g} um = "
            f"{planned.tile_px} px" + (f"; {planned.beyond_edge} reach past the edge" if planned.beyond_edge else "")
        )
    print_table(
        "  levels", ("level", "width", "height", "downsample", "stored in"),
        [
            (f"  {i}", str(lv.width), str(lv.height), f"{lv.downsample:.4g}", _pieces(lv.tile))
            for i, lv in enumerate(found.levels)
        ],
    )  # fmt: skip
    if cost is not None:
        basis = ", ".join(f"{n} {what}" for what, n in cost.measured.items() if n)
        stages = ", ".join(f"{stage} {_duration(s)}" for stage, s in cost.seconds.items())
        disk = ", ".join(f"{what} {_bytes(n)}" for what, n in cost.disk_bytes.items())
        typer.echo(f"  forecast for {backbone}, extrapolated from {basis}: about {_duration(cost.total_s)} ({stages})")
        typer.echo(f"    memory {_bytes(cost.memory_bytes)} at the peak" + (f"; on disk: {disk}" if disk else ""))
        typer.echo(f"    not counted: {', '.join(cost.left_out)}")
    for text in found.notes:
        typer.echo(f"  note: {text}")
    for text in found.missing:
        typer.echo(f"  missing: {text}")


def _pieces(tile: tuple[int, int] | None) -> str:
    return "?" if tile is None else f"{tile[0]} x {tile[1]}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _bytes(n: float) -> str:
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} GB"
