"""`generag slurm`."""

from pathlib import Path
from typing import Annotated

import typer

from genrag_cli import __version__
from genrag_cli.cli import options as opt
from genrag_cli.cli.console import guarded
from genrag_cli.cli.line import parse_line, put_out

MOST_TASKS = 8


@guarded
def slurm(
    line: opt.Line,
    tasks: Annotated[
        int | None,
        typer.Option(
            "--tasks",
            min=1,
            show_default=False,
            help=f"Tasks of the array, which share the slides. Default: one per slide, {MOST_TASKS} at most.",
        ),
    ] = None,
    time: opt.JobTime = opt.DEFAULT_JOB_TIME,
    cpus: opt.JobCpus = opt.DEFAULT_JOB_CPUS,
    mem: opt.JobMem = opt.DEFAULT_JOB_MEM,
    gpus: opt.JobGpus = 0,
    partition: Annotated[str | None, typer.Option("--partition", help="Default: the cluster's.")] = None,
    account: Annotated[str | None, typer.Option("--account", help="Default: yours.")] = None,
    signal_s: Annotated[
        int,
        typer.Option(
            "--signal-s",
            min=1,
            help="Seconds before the time limit at which a task stops and queues again. Let a block of spots fit in.",
        ),
    ] = 120,
    log_dir: Annotated[
        Path, typer.Option("--log-dir", help="Folder of the logs; made, because SLURM does not.", show_default=False)
    ] = Path(),
    out_file: opt.OutFile = None,
    overwrite: opt.Overwrite = False,
    dry_run: opt.DryRun = False,
    debug: opt.Debug = False,  # noqa: ARG001 - read by `guarded`
) -> None:
    """Write an sbatch file that runs a command line over slides as a SLURM array: generag slurm -- retrieve slides/ ...

    The tasks share the slides among them and the output folder, stop before the time limit, and queue again.
    """
    from genrag_cli.pipeline.batch.inputs import find_jobs
    from genrag_cli.pipeline.jobs.resources import Resources
    from genrag_cli.pipeline.jobs.sbatch import Array, write_sbatch

    parsed = parse_line(line)
    n = tasks or min(len(find_jobs(parsed.slides)), MOST_TASKS)
    array = Array(n, Path.cwd(), log_dir, signal_s, partition, account)
    text = write_sbatch(parsed, array, Resources(time, cpus, mem, gpus), __version__)
    if not dry_run and not log_dir.is_dir():
        log_dir.mkdir(parents=True)
        typer.echo(f"{log_dir}: made, for the logs", err=True)
    put_out(text, out_file, f"sbatch {out_file}", overwrite=overwrite, dry_run=dry_run)
