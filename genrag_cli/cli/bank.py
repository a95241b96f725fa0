"""`generag bank info`, `verify`, `remove` and `merge`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from genrag_cli.cli import options as opt
from genrag_cli.cli.console import ConsoleListener, guarded, print_json, print_table
from genrag_cli.errors import BankError
from genrag_cli.pipeline.options import CommonGenes

app = typer.Typer(no_args_is_help=True, help="Look into a bank, take sections out, join two.")


@app.command("info")
@guarded
def info(bank: opt.Bank = opt.DEFAULT_BANK, json: opt.Json = False, debug: opt.Debug = False) -> None:  # noqa: ARG001
    """Say what is inside: sections, patients, spots, genes, backbones and versions."""
    from genrag_cli.stores.bank import read_manifest

    manifest = read_manifest(bank)
    if json:
        print_json(manifest)
        return
    typer.echo(
        f"{bank}: {sum(s['n_spots'] for s in manifest['sections'])} spots, {len(manifest['genes'])} genes, "
        + ", ".join(f"{k} {v if isinstance(v, str) else f'{v:g}'}" for k, v in manifest["geometry"].items())
    )
    columns = ("section", "patient", "spots", "um/px", "from", "genes dropped", "genes missing")
    print_table("Sections", columns, _sections(manifest))
    for name, entry in manifest["backbones"].items():
        card = entry["card"]
        typer.echo(
            f"backbone {name}: {card['dim']} dimensions, {len(entry['sections'])} sections, {card['licence']}"
            + _describe_source(card, entry.get("loading") or {})
        )
        for v in entry["versions"]:
            typer.echo(f"  version {v['version']}: {_describe_version(v)}")
        if not entry["versions"]:
            typer.echo("  unfinished: run build-bank again")
    for name, reason in manifest["skipped"]:
        typer.echo(f"skipped {name}: {reason}")
    for name in manifest.get("removed", []):
        typer.echo(f"taken out: {name}")


def _sections(manifest: dict[str, Any]) -> list[tuple[str, ...]]:
    dropped = manifest["dropped_genes"]
    return [
        (
            s["name"],
            s["patient"] or "unknown",
            str(s["n_spots"]),
            f"{s['pixel_size']['mpp']:.4g}",
            s["pixel_size"]["source"],
            str(dropped.get(s["name"], 0)),
            str(s["n_missing"]),
        )
        for s in manifest["sections"]
    ]


def _describe_source(card: dict[str, Any], loading: dict[str, Any]) -> str:
    """What made the embeddings, and the first guess where that is not the head's."""
    said = [f"{card['views']} views"] if card.get("views", 1) > 1 else []
    said += [f"from {loading[key]}" for key in ("features", "weights") if loading.get(key)]
    if card.get("scale") or "bank" in card.get("needs", ()):
        said.append(f"first guess: the model's own{', ' + card['scale'] if card.get('scale') else ''}")
    return "".join(f"; {text}" for text in said)


def _describe_version(version: dict[str, Any]) -> str:
    if gone := version.get("withdrawn"):
        return f"history; it used {', '.join(gone[:10])}, taken out since"
    return (
        f"{version['n_sections']} sections; {version['n_anchors']} anchors ({version['panel']}); "
        f"head strength by {version['rule']}; "
        + (f"tuned ({len(version['tunings'])})" if version.get("tunings") else "not tuned (generag tune)")
    )


@app.command("verify")
@guarded
def verify(bank: opt.Bank = opt.DEFAULT_BANK, json: opt.Json = False, debug: opt.Debug = False) -> None:  # noqa: ARG001
    """Compare every file of a bank with its digest."""
    from genrag_cli.stores.bank import read_manifest
    from genrag_cli.stores.bank_check import verify_bank

    wrong, sealed = verify_bank(bank), "manifest_sha256" in read_manifest(bank)
    if json:
        print_json({"bank": str(bank), "intact": not wrong, "wrong": wrong, "manifest_has_digest": sealed})
    elif not wrong:
        earlier = "; its manifest has no digest of its own, as an earlier version wrote it"
        typer.echo(f"{bank}: intact{'' if sealed else earlier}")
    if wrong:
        raise BankError(
            f"{bank} is damaged or unfinished: {'; '.join(wrong)}",
            "Take the named files away and run the same build-bank again; it redoes only what is missing.",
        )


@app.command("remove")
@guarded
def remove(
    sections: Annotated[list[str], typer.Argument(help="Sections to take out, by name.", show_default=False)],
    bank: opt.Bank = opt.DEFAULT_BANK,
    dry_run: opt.DryRun = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    debug: opt.Debug = False,  # noqa: ARG001 - read by `guarded`
) -> None:
    """Take sections out for good, as when consent is withdrawn; a rerun finishes what was cut off.

    Their files are deleted, and each backbone gets a version without them.
    """
    from genrag_cli.pipeline.change_bank import remove_sections

    listener = ConsoleListener(quiet=quiet, verbose=verbose)
    try:
        remove_sections(bank, sections, listener, dry_run=dry_run)
    finally:
        listener.close()


@app.command("merge")
@guarded
def merge(
    first: Annotated[Path, typer.Argument(help="A bank; the recipe for anchors is its.", show_default=False)],
    second: Annotated[Path, typer.Argument(help="Another bank.", show_default=False)],
    bank: Annotated[Path, typer.Option("--bank", help="The new bank.", show_default=False)],
    genes: Annotated[
        CommonGenes,
        typer.Option("--genes", help="Genes that both have, or refuse lists that differ."),
    ] = "shared",
    dry_run: opt.DryRun = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    debug: opt.Debug = False,  # noqa: ARG001 - read by `guarded`
) -> None:
    """Join two banks in a new one; nothing is embedded again, and a rerun finishes what was cut off."""
    from genrag_cli.pipeline.merge_banks import merge_banks

    listener = ConsoleListener(quiet=quiet, verbose=verbose)
    try:
        merge_banks(first, second, bank, listener, genes=genes, dry_run=dry_run)
    finally:
        listener.close()
