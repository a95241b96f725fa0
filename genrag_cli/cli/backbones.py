"""`generag backbones list`, `info`, `check` and `fetch`."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genrag_cli.cli import options as opt
from genrag_cli.cli.console import ConsoleListener, guarded, print_json, print_table, show_error
from genrag_cli.cli.setup import make_run
from genrag_cli.errors import BackboneError, GeneragError, SomeInputsFailed

if TYPE_CHECKING:
    from genrag_cli.pipeline.backbones import BackboneFacts, Fetched, PlacedFile

app = typer.Typer(no_args_is_help=True, help="Show encoders and models, try one, fetch weights.")
Name = Annotated[str, typer.Argument(help="Backbone by name; timm:NAME for any network of timm.", show_default=False)]


@app.command("list")
@guarded
def list_(json: opt.Json = False, debug: opt.Debug = False) -> None:  # noqa: ARG001 - read by `guarded`
    """Show every installed backbone, and whether its weights are here; a broken plug-in says why."""
    from genrag_cli.pipeline.backbones import list_backbones

    found = list_backbones()
    if json:
        print_json([_facts(one) for one in found])
        return
    columns = ("backbone", "kind", "d", "um", "px", "predicts", "weights here", "licence")
    print_table("Backbones", columns, [_row(one) for one in found], left=("backbone", "kind", "licence"))


def _row(facts: "BackboneFacts") -> tuple[str, ...]:
    sheet = facts.sheet
    if facts.broken:
        return (facts.name, "broken", "", "", "", "", "", facts.broken)
    if facts.family:
        return (f"{facts.name}:NAME", "family", "", "", "", "", "", f"see: generag backbones info {facts.name}:NAME")
    if sheet is None:
        return (facts.name, "unknown", "", "", "", "", facts.here, f"no sheet, {facts.package}")
    um = "any" if sheet.fov_um is None else f"{sheet.fov_um:g}"
    dim = "its own" if sheet.dim is None else str(sheet.dim)
    predicts = sheet.scale or ("the bank's" if sheet.kind == "model" else "-")
    return (facts.name, sheet.kind, dim, um, str(sheet.tile_px), predicts, facts.here, sheet.licence)


@app.command("info")
@guarded
def info(name: Name, json: opt.Json = False, debug: opt.Debug = False) -> None:  # noqa: ARG001 - read by `guarded`
    """Show all that is known of a backbone before it is loaded: what it is, takes, needs, and where its files are."""
    from genrag_cli.pipeline.backbones import describe_backbone

    facts = describe_backbone(name)
    if json:
        print_json(_facts(facts))
        return
    sheet = facts.sheet
    if facts.family:
        typer.echo(f"{name}:NAME is a family ({facts.package}): any network of timm, such as {name}:resnet18")
        return
    if sheet is None:
        typer.echo(f"{name}: no sheet, {facts.package}")
        return
    lines = {
        "kind": "image-to-expression model" if sheet.kind == "model" else "encoder",
        "package": facts.package,
        "embedding": f"{sheet.feature}; " + (f"{sheet.dim} numbers" if sheet.dim else "as many as its weights say"),
        "tiles": f"{sheet.tile_px} px, " + (f"{sheet.fov_um:g} um" if sheet.fov_um else "any field of view"),
        "licence": sheet.licence,
        "source": sheet.source,
        "precision": f"{sheet.precision} on GPUs, float32 on CPUs",
        "predicts": sheet.scale or ("in the scale of the bank" if sheet.kind == "model" else ""),
        "looks at": ", ".join(sheet.needs),
        "deterministic": "yes" if sheet.deterministic else "no",
        "unchecked": sheet.unchecked,
        "weights here": facts.here,
    }
    typer.echo(name)
    for key, value in lines.items():
        if value:
            typer.echo(f"  {key}: {value}")
    for placed in facts.files:
        typer.echo(f"    {_describe_file(placed)}")
    for key, value in sheet.options.items():
        typer.echo(f"  --backbone-option {key}=VALUE: {value}")


def _describe_file(placed: "PlacedFile") -> str:
    file = placed.file
    said = [" or ".join(file.filenames) or "a file"]
    if file.package:
        said.append(f"of the package {file.package}")
    elif file.repo:
        said.append(f"of {file.repo} at " + (file.revision or "no pinned revision"))
    else:
        said.append("nowhere on a hub")
    if file.gated:
        said.append("licence to accept first")
    if file.where:
        said.append(file.where)
    said.append(f"here: {placed.path}" if placed.path else "not here")
    return (f"{file.part}: " if file.part else "") + ", ".join(said)


@app.command("check")
@guarded
def check(
    name: Name,
    weights: opt.Weights = None,
    backbone_option: opt.BackboneOptions = None,
    unsafe_pickle: opt.UnsafePickle = False,
    device: opt.Device = None,
    workers: opt.Workers = None,
    dry_run: opt.DryRun = False,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,  # noqa: ARG001 - read by `guarded`
) -> None:
    """Load a backbone and embed a few made-up tiles; exit code 1 where it cannot, or where embeddings do not agree."""
    from genrag_cli.pipeline.backbones import check_backbone, describe_backbone
    from genrag_cli.pipeline.loading import parse_loading

    loading = parse_loading([name], weights or [], backbone_option or [], unsafe_pickle)[name]
    if dry_run:
        facts = describe_backbone(name)
        weights_here = "given" if loading.weights or loading.parts else facts.here
        typer.echo(f"would load {name} (weights here: {weights_here}) and embed a few made-up tiles", err=True)
        if json:
            print_json({"name": name, "weights_here": weights_here, "dry_run": True})
        return
    run = make_run(ConsoleListener(quiet=quiet), device=device, workers=workers)
    done = check_backbone(name, loading, run.device)
    if json:
        print_json(asdict(done) | {"wrong": list(done.wrong)})
    else:
        typer.echo(f"{name}: {done.dim} numbers a tile of {done.tile_px} px, loaded in {done.load_s:.1f} s")
        typer.echo(f"  weights: {f'SHA-256 {done.weights_sha256}' if done.weights_sha256 else 'none'}")
        typer.echo(f"  on {done.device}: {done.tile_s:.3g} s a tile")
        if done.kind == "model":
            typer.echo(
                f"  predicts: {done.genes or 'the genes of the bank'}{' genes' if done.genes else ''}, ", nl=False
            )
            typer.echo(done.scale or "in the scale of the bank")
        typer.echo(f"  repeated: {'the same' if done.repeats else 'not the same'}")
        typer.echo(
            f"  alone and in a batch: {'the same' if done.batches else 'not the same'}, "
            f"largest difference {done.batch_difference:.1e} of the largest number"
        )
    if done.wrong:
        raise BackboneError(
            f"backbone {name}: {'; '.join(done.wrong)}", "Nothing should be built on it before it does."
        )


@app.command("fetch")
@guarded
def fetch(
    names: Annotated[list[str], typer.Argument(help="Backbones by name.", show_default=False)],
    dry_run: opt.DryRun = False,
    json: opt.Json = False,
    debug: opt.Debug = False,
) -> None:
    """Download the weights of backbones into the hub's cache (HF_HOME; HF_TOKEN for gated ones), and show digests."""
    from genrag_cli.pipeline.backbones import fetch_backbone, plan_fetch

    asked = list(dict.fromkeys(names))
    results: list[dict[str, Any]] = []
    failed: list[GeneragError] = []
    for name in asked:
        try:
            if dry_run:
                planned = plan_fetch(name)
                results.append({"backbone": name, "files": list(planned), "dry_run": True})
                for text in planned or ("needs no weights",):
                    typer.echo(f"{name}: {text}", err=True)
                continue
            done = fetch_backbone(name)
        except GeneragError as error:
            failed.append(error)
            results.append({"backbone": name, "error": error.message, "hint": error.hint})
            if len(asked) > 1:
                show_error(error)
            continue
        results.append({"backbone": name, "files": [_fetched(file) for file in done]})
        if not json:
            _show_fetched(name, done)
    if json:
        print_json(results)
    if failed and (len(asked) == 1 or debug):
        raise failed[0]
    if failed:
        kind = SomeInputsFailed if len(failed) < len(asked) else GeneragError
        lost = ", ".join(str(one["backbone"]) for one in results if "error" in one)
        raise kind(f"{len(failed)} of {len(asked)} backbones failed: {lost}", "The reasons stand above.")


def _show_fetched(name: str, done: "Sequence[Fetched]") -> None:
    if not done:
        typer.echo(f"{name}: needs no weights")
    for one in done:
        of = f"{name} {one.part}".strip()
        typer.echo(f"{of}: {one.path}\n  SHA-256 {one.sha256}, {one.note}" if one.path else f"{of}: {one.note}")


def _fetched(one: "Fetched") -> dict[str, Any]:
    return {"part": one.part, "path": _text(one.path), "sha256": one.sha256 or None, "note": one.note}


def _facts(facts: "BackboneFacts") -> dict[str, Any]:
    """For JSON: names as in the sheet; what is not known is null."""
    sheet = None
    if facts.sheet is not None:
        sheet = {k: v for k, v in asdict(facts.sheet).items() if k != "weights"}
        sheet["options"] = dict(facts.sheet.options)
    files = [asdict(placed.file) | {"path": _text(placed.path)} for placed in facts.files]
    return {
        "name": facts.name, "package": facts.package, "broken": facts.broken or None, "family": facts.family,
        "weights_here": facts.here, "sheet": sheet, "weights": files,
    }  # fmt: skip


def _text(path: object) -> str | None:
    return None if path is None else str(path)
