"""Slides of a command: what was given becomes jobs, a batch works on them, and a table says what became of each."""

import datetime
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genrag_cli import stopping
from genrag_cli.cli.console import ConsoleListener, print_json, print_table, show_error
from genrag_cli.errors import GeneragError, SomeInputsFailed, Stopped, UsageError

if TYPE_CHECKING:
    from genrag_cli.pipeline.batch.inputs import Job
    from genrag_cli.pipeline.batch.outcome import BatchOptions, Outcome
    from genrag_cli.pipeline.batch.work import Work
    from genrag_cli.pipeline.options import RunOptions


def choose_jobs(slides: Sequence[str], shard: str | None, listener: ConsoleListener) -> "list[Job]":
    """The slides that this command is to work on.

    Raises:
        UsageError: where there are none, or the share cannot be right.
    """
    from genrag_cli.pipeline.batch.inputs import find_jobs, parse_share, share_of_array, take_share

    jobs = find_jobs(slides)
    share = parse_share(shard) if shard else None
    if share is None and len(jobs) > 1 and (share := share_of_array(os.environ)) is not None:
        listener.say(
            f"task {share[0] + 1} of {share[1]} of a SLURM array takes its share; --shard 0/1 would take all slides"
        )
    if share is None:
        return jobs
    mine = take_share(jobs, share)
    listener.say(f"share {share[0]}/{share[1]}: {len(mine)} of {len(jobs)} slides")
    return mine


def make_batch(
    run: "RunOptions",
    jobs: "Sequence[Job]",
    *,
    wait: bool,
    lease_s: float,
    stage: Path | None,
    overlay: bool,
    debug: bool,
) -> "BatchOptions":
    """How the batch is run, from options and environment."""
    from genrag_cli.pipeline.batch.outcome import BatchOptions
    from genrag_cli.pipeline.batch.staging import place_for_remote

    return BatchOptions(
        overwrite=run.overwrite, dry_run=run.dry_run, wait=wait, lease_s=lease_s, overlay=overlay, debug=debug,
        stage=place_for_remote(stage, jobs, dict(os.environ)), overlap=run.device != "cpu",
    )  # fmt: skip


def run_slides(
    work: "Work[Any]",
    jobs: "Sequence[Job]",
    out: Path,
    endings: tuple[str, ...],
    options: "BatchOptions",
    listener: ConsoleListener,
    describe: "Callable[[Outcome], dict[str, Any]]",
    *,
    as_json: bool,
) -> None:
    """Works on every slide.

    Args:
        work: the command.
        jobs: the slides.
        out: one file (its name has one of `endings`) or a folder.
        endings: of the files that `work` writes.
        options: of the batch.
        listener: told what happens.
        describe: what is to be known about a slide.
        as_json: print what became of the slides as one document.

    Raises:
        UsageError: where several slides would go into one file, or `out` is neither such a file nor a folder.
        GeneragError: what went wrong, where there was only one slide.
        SomeInputsFailed: where some of several failed (exit 3); where all did, a GeneragError (exit 1).
        Stopped: where that was asked for.
    """
    from genrag_cli.pipeline.batch.report import make_report, write_report
    from genrag_cli.pipeline.batch.run import Batch

    _expect_places(jobs, out, endings)
    began, when = time.monotonic(), datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    several = len(jobs) > 1

    def failed(error: GeneragError) -> None:
        if several:
            listener.close()
            show_error(error)

    batch = Batch(work, options, listener, failed)
    stopped = False
    listener.event("run_started", command=work.kind, slides=len(jobs))
    try:
        with stopping.gracefully():
            batch.run(jobs)
    except (KeyboardInterrupt, Stopped):
        stopped = True
        raise
    finally:
        listener.close()
        outcomes = batch.outcomes
        report = make_report(
            outcomes, command=work.kind, argv=shlex.join(sys.argv), elapsed_s=time.monotonic() - began, stopped=stopped
        )
        listener.event("run_ended", **{k: v for k, v in report.items() if k != "slides"})
        if several and not options.dry_run and outcomes:
            try:
                _show(report, write_report(out, report, when), listener)
            except GeneragError as error:  # it must not hide why this ends
                listener.warn(error.message)
        if as_json:
            print_json({"slides": [_of(o, describe) for o in outcomes], "run": report})
    errors = [(o, o.error) for o in outcomes if o.error is not None]
    if not errors:
        return
    if not several:
        raise errors[0][1]
    names = ", ".join(o.job.slide for o, _ in errors)
    kind = SomeInputsFailed if len(errors) < len(jobs) else GeneragError
    raise kind(f"{len(errors)} of {len(jobs)} slides failed: {names}", "The reasons stand above.")


def _of(outcome: "Outcome", describe: "Callable[[Outcome], dict[str, Any]]") -> dict[str, Any]:
    from genrag_cli.pipeline.batch.report import state_of

    about = {"slide": outcome.job.slide, "name": outcome.job.name, "state": state_of(outcome)}
    if outcome.error is not None:
        return {**about, "error": outcome.error.message, "hint": outcome.error.hint}
    return {**about, **describe(outcome), "spots": outcome.status.spots, "skipped": outcome.skipped}


def _show(report: dict[str, Any], path: Path, listener: ConsoleListener) -> None:
    """The table of a run, on stderr."""
    if listener.quiet:
        return
    rows = []
    for slide in report["slides"]:
        spots = "" if slide["spots"] is None else str(slide["spots"])
        total = slide["seconds"].get("total")
        note = (slide["reason"] or slide["held_by"]).partition("\n")[0]
        rows.append([slide["name"], slide["state"], spots, "" if total is None else f"{total:.1f}", note])
    counts = ", ".join(f"{n} {state}" for state, n in report["counts"].items() if n)
    print_table(
        f"\n{counts} in {report['elapsed_s']:.1f} s", ["slide", "state", "spots", "seconds", "reason"], rows, err=True,
        left=("state", "reason"),
    )  # fmt: skip
    stages = ", ".join(f"{stage} {s:.1f}" for stage, s in report["seconds"].items())
    if stages:
        rate = "" if report["tiles_per_s"] is None else f"; {report['tiles_per_s']:.0f} tiles/s"
        listener.say(f"seconds: {stages}{rate}; peak memory {report['peak_memory'] / 2**30:.2f} GiB")
    listener.say(f"report: {path}")


def _expect_places(jobs: "Sequence[Job]", out: Path, endings: tuple[str, ...]) -> None:
    n = sum(job.out is None for job in jobs)
    if out.name.endswith(endings):
        if n > 1:
            raise UsageError(f"--out {out} is one file, {n} slides were given", "Give a folder.")
        return
    if out.is_file():
        raise UsageError(
            f"--out {out} is a file that is there and does not end in {' or '.join(endings)}",
            "Give a folder, or a file with such a name.",
        )
