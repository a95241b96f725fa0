"""`generag workflow snakemake` and `generag workflow nextflow`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from genrag_cli import __version__
from genrag_cli.cli import options as opt
from genrag_cli.cli.console import guarded
from genrag_cli.cli.line import parse_line, put_out

if TYPE_CHECKING:
    from genrag_cli.pipeline.jobs.cohort import OneSlide
    from genrag_cli.pipeline.jobs.line import Line
    from genrag_cli.pipeline.jobs.resources import Resources

app = typer.Typer(no_args_is_help=True, help="Write files for workflow managers: one job per slide of a command line.")
Retries = Annotated[int, typer.Option("--retries", min=0, help="Tries after the first; a stopped slide goes on.")]


@app.command("snakemake", context_settings=opt.TAKES_A_LINE)
@guarded
def snakemake(
    line: opt.Line,
    time: opt.JobTime = opt.DEFAULT_JOB_TIME,
    cpus: opt.JobCpus = opt.DEFAULT_JOB_CPUS,
    mem: opt.JobMem = opt.DEFAULT_JOB_MEM,
    gpus: opt.JobGpus = 0,
    retries: Retries = 3,
    out_file: opt.OutFile = None,
    overwrite: opt.Overwrite = False,
    dry_run: opt.DryRun = False,
    debug: opt.Debug = False,  # noqa: ARG001 - read by `guarded`
) -> None:
    """Write a Snakefile with a job per slide of a command line: generag workflow snakemake -- retrieve slides/ ..."""
    from genrag_cli.pipeline.jobs.resources import Resources
    from genrag_cli.pipeline.jobs.snakemake import write_snakefile

    _write(
        write_snakefile, line, Resources(time, cpus, mem, gpus), retries, out_file,
        "snakemake --cores all --keep-going --snakefile", overwrite=overwrite, dry_run=dry_run,
    )  # fmt: skip


@app.command("nextflow", context_settings=opt.TAKES_A_LINE)
@guarded
def nextflow(
    line: opt.Line,
    time: opt.JobTime = opt.DEFAULT_JOB_TIME,
    cpus: opt.JobCpus = opt.DEFAULT_JOB_CPUS,
    mem: opt.JobMem = opt.DEFAULT_JOB_MEM,
    gpus: opt.JobGpus = 0,
    retries: Retries = 3,
    out_file: opt.OutFile = None,
    overwrite: opt.Overwrite = False,
    dry_run: opt.DryRun = False,
    debug: opt.Debug = False,  # noqa: ARG001 - read by `guarded`
) -> None:
    """Write a Nextflow script, a task per slide of a command line: generag workflow nextflow -- retrieve slides/ ..."""
    from genrag_cli.pipeline.jobs.nextflow import write_nextflow
    from genrag_cli.pipeline.jobs.resources import Resources

    _write(
        write_nextflow, line, Resources(time, cpus, mem, gpus), retries, out_file, "nextflow run",
        overwrite=overwrite, dry_run=dry_run,
    )  # fmt: skip


def _write(
    writer: Callable[["Line", Sequence["OneSlide"], "Resources", int, str], str],
    words: Sequence[str],
    resources: "Resources",
    retries: int,
    out_file: Path | None,
    start: str,
    *,
    overwrite: bool,
    dry_run: bool,
) -> None:
    from genrag_cli.pipeline.jobs.cohort import list_slides

    parsed = parse_line(words)
    text = writer(parsed, list_slides(parsed), resources, retries, __version__)
    put_out(text, out_file, f"{start} {out_file}", overwrite=overwrite, dry_run=dry_run)
