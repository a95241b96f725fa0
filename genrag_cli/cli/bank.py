"""`generag bank info` and `generag bank verify`."""

from typing import Any

import typer

from genrag_cli.cli import options as opt
from genrag_cli.cli.console import guarded, print_json, print_table
from genrag_cli.errors import BankError

app = typer.Typer(no_args_is_help=True, help="Look into a bank.")


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
        + ", ".join(f"{k} {v:g}" for k, v in manifest["geometry"].items())
    )
    print_table("Sections", ("section", "patient", "spots", "um/px", "from", "genes dropped"), _sections(manifest))
    for name, entry in manifest["backbones"].items():
        card = entry["card"]
        typer.echo(f"backbone {name}: {card['dim']} dimensions, {len(entry['sections'])} sections, {card['licence']}")
        for v in entry["versions"]:
            typer.echo(
                f"  version {v['version']}: sections {', '.join(v['sections'])}; {len(v['anchors'])} anchors "
                f"({v['panel']}); head strength by {v['rule']}"
            )
        if not entry["versions"]:
            typer.echo("  unfinished: run build-bank again")
    for name, reason in manifest["skipped"]:
        typer.echo(f"skipped {name}: {reason}")


def _sections(manifest: dict[str, Any]) -> list[tuple[str, ...]]:
    dropped = manifest["dropped_genes"]
    return [
        (
            s["name"],
            s["patient"] or "unknown",
            str(s["n_spots"]),
            f"{s['pixel_size']['mpp']:.4g}",
            s["pixel_size"]["source"],
            str(len(dropped.get(s["name"], []))),
        )
        for s in manifest["sections"]
    ]


@app.command("verify")
@guarded
def verify(bank: opt.Bank = opt.DEFAULT_BANK, json: opt.Json = False, debug: opt.Debug = False) -> None:  # noqa: ARG001
    """Compare every file of a bank with its digest."""
    from genrag_cli.stores.bank import verify_bank

    wrong = verify_bank(bank)
    if json:
        print_json({"bank": str(bank), "intact": not wrong, "wrong": wrong})
    elif not wrong:
        typer.echo(f"{bank}: intact")
    if wrong:
        raise BankError(
            f"{bank} is damaged or unfinished: {'; '.join(wrong)}",
            "Take the named files away and run the same build-bank again; it redoes only what is missing.",
        )
