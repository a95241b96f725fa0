"""`generag cohort info` and `generag cohort scan`."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from genrag_cli.cli import options as opt
from genrag_cli.cli.console import ConsoleListener, guarded, print_json, print_table

if TYPE_CHECKING:
    from genrag_cli.pipeline.survey import SectionSurvey, Survey

app = typer.Typer(no_args_is_help=True, help="Look at measured sections before a bank is built.")


@app.command("info")
@guarded
def info(
    cohort: opt.Cohort,
    patients: opt.Patients = None,
    fov_um: Annotated[
        float | None, typer.Option("--fov-um", help="Side of a tile in um. Default: twice the spot diameter.")
    ] = None,
    mpp: opt.SectionMpp = None,
    strict_mpp: opt.StrictMpp = False,
    spot_um: opt.SpotUm = None,
    bin_um: opt.BinUm = None,
    gene_aliases: opt.GeneAliases = None,
    duplicate_genes: opt.DuplicateGenes = "sum",
    format: opt.Format = None,  # noqa: A002 - a parameter is named like its flag
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    debug: opt.Debug = False,  # noqa: ARG001 - read by `guarded`
) -> None:
    """Say what a cohort holds: sections, patients, spots, genes, pixel sizes, and what would be dropped and why."""
    from genrag_cli.cohorts import Reading, open_cohort
    from genrag_cli.pipeline.sections import GeneRules, PixelRules
    from genrag_cli.pipeline.survey import survey

    listener = ConsoleListener(quiet=quiet, verbose=verbose)
    try:
        opened = open_cohort(
            cohort, patients=patients, format=format, reading=Reading(spot_um, bin_um, mpp), needs_image=False
        )
        found = survey(
            opened, GeneRules(gene_aliases, duplicate_genes), PixelRules(mpp, strict_mpp), fov_um=fov_um,
            listener=listener,
        )  # fmt: skip
    finally:
        listener.close()
    if json:
        print_json({**dataclasses.asdict(found), "patients": found.patients})
        return
    _print(found, verbose=verbose)


def _print(found: "Survey", *, verbose: bool) -> None:
    spots = sum(s.n_spots or 0 for s in found.sections)
    genes = "" if found.n_shared_genes is None else f", {found.n_shared_genes} genes in all with an image"
    typer.echo(
        f"{found.root} ({found.format}): {len(found.sections)} sections, {len(found.patients)} known patients, "
        f"{spots} spots{genes}"
    )
    header = (
        "section", "patient", "technology", "species", "spots", "genes", "dropped", "um/px", "from", "pitch, um",
        "tile, um", "darkness", "image",
    )  # fmt: skip
    print_table("Sections", header, [_row(s) for s in found.sections])
    typer.echo(
        "darkness: the chance that a spot is darker than a place without spots; .5 says that they miss the tissue"
    )
    for s in found.sections:
        for problem in s.problems:
            typer.echo(f"! {s.name}: {problem}")
        for other, value in s.mpp_others:
            if verbose or (s.mpp and abs(value / s.mpp - 1) > 0.05):
                typer.echo(f"  {s.name}: {other} says {value:.4g} um/px")
        for note in s.notes if verbose else s.notes[:3]:
            typer.echo(f"  {s.name}: {note}")
    for name, reason in found.skipped:
        typer.echo(f"! {name}: skipped, {reason}")
    for text in found.warnings:
        typer.echo(f"! {text}")


def _row(s: "SectionSurvey") -> tuple[str, ...]:
    def number(value: float | None, form: str = "g") -> str:
        return "?" if value is None else f"{value:{form}}"

    image = "-" if s.image is None else Path(s.image).name
    return (
        s.name, s.patient or "unknown", s.technology, s.species or "?", number(s.n_spots), number(s.n_genes),
        "-" if s.dropped_genes is None else str(s.dropped_genes), number(s.mpp, ".4g"), s.mpp_source or "-",
        number(s.pitch_um), number(s.fov_um), "-" if s.darkness is None else f"{s.darkness:.2f}", image,
    )  # fmt: skip


@app.command("scan")
@guarded
def scan(
    folder: Annotated[Path, typer.Argument(help="Folder to look through.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Table to write. Default: cohort.csv in the folder.", show_default=False),
    ] = None,
    patients: opt.Patients = None,
    spot_um: opt.SpotUm = None,
    bin_um: opt.BinUm = None,
    overwrite: opt.Overwrite = False,
    dry_run: opt.DryRun = False,
    debug: opt.Debug = False,  # noqa: ARG001 - read by `guarded`
) -> None:
    """Write a table of the sections of a folder, for a person to check and correct.

    Every command that takes sections takes the table, or the folder with a cohort.csv in it.
    """
    from genrag_cli.cohorts import Reading
    from genrag_cli.cohorts.manifest import NAME, write_manifest
    from genrag_cli.cohorts.patients import name_patients
    from genrag_cli.errors import OutputError
    from genrag_cli.pipeline.survey import scan as look
    from genrag_cli.stores.atomic import new_file

    found, formats = look(folder, Reading(spot_um, bin_um))
    if patients is not None:
        found = name_patients(found, patients)
    target = out or folder / NAME
    text = write_manifest(target, found, formats)
    n, bare = len(found.sections) + len(found.without_slide), len(found.without_slide)
    said = f"{n} sections ({', '.join(sorted(set(formats.values())))}), {bare} without an image"
    if dry_run:
        typer.echo(f"would write {target}: {said}", err=True)
        typer.echo(text, nl=False)
        return
    if target.exists() and not overwrite:
        if target.read_text(encoding="utf-8") == text:
            typer.echo(f"{target}: already there, {said}", err=True)
            return
        raise OutputError(
            f"{target} is there already and differs from what the folder gives",
            "It may hold corrections: give another --out to compare, or --overwrite to replace it.",
        )
    with new_file(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
    typer.echo(f"{target}: {said}", err=True)
    typer.echo(f"Check it, then: generag cohort info {target}", err=True)
