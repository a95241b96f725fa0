"""Progress, tables and errors: talk goes to stderr, data to stdout.

On a terminal rich draws bars with rate and time left; elsewhere plain lines come, at most one every few seconds.
"""

import datetime
import errno
import functools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, ParamSpec, TypeVar

import typer

from genrag_cli import stopping
from genrag_cli.errors import GeneragError, Stopped
from genrag_cli.types import Listener, Progress

PLAIN_EVERY_S = 10.0
EVENTS_EVERY_S = 1.0
P = ParamSpec("P")
R = TypeVar("R")


class ConsoleListener(Listener):
    """Shows what a pipeline says."""

    def __init__(self, *, quiet: bool = False, verbose: bool = False, events: bool = False) -> None:
        super().__init__()
        self.events = events
        self.last_event: dict[str, float] = {}
        self.printing = threading.RLock()
        """Slides are begun by one thread and finished by another."""
        self.quiet = quiet
        self.verbose = verbose
        self.bars: Any = None
        self.tasks: dict[str, Any] = {}
        self.began: dict[str, tuple[float, int]] = {}
        self.last_line: dict[str, float] = {}

    def say(self, text: str) -> None:
        """Prints a line unless quiet."""
        self.event("log", level="info", text=text)
        if not self.quiet:
            self._print(text)

    def warn(self, text: str) -> None:
        """Prints a warning always."""
        self.event("log", level="warning", text=text)
        self._print(f"warning: {text}")

    def progress(self, step: Progress) -> None:
        """Moves a bar, or prints a line now and then."""
        if step.total == 0:
            return
        self._tell_step(step)
        if self.quiet:
            return
        with self.printing:
            if sys.stderr.isatty():
                self._move_bar(step)
            else:
                self._print_step(step)

    def event(self, name: str, /, **facts: Any) -> None:
        """Prints a JSON line on stdout, where that was asked for."""
        if self.events:
            at = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
            with self.printing:
                typer.echo(json.dumps({"event": name, "time": at, **facts}, allow_nan=False))

    def _tell_step(self, step: Progress) -> None:
        now = time.monotonic()
        if step.done >= step.total or now - self.last_event.get(step.stage, 0.0) >= EVENTS_EVERY_S:
            self.last_event[step.stage] = now
            self.event("progress", stage=step.stage, done=step.done, total=step.total)

    def close(self) -> None:
        """Ends the bars."""
        with self.printing:
            if self.bars is not None:
                self.bars.stop()
                self.bars = None
                self.tasks.clear()

    def _print(self, text: str) -> None:
        with self.printing:
            if self.bars is not None:
                self.bars.console.print(text, markup=False, highlight=False, soft_wrap=True)
            else:
                typer.echo(text, err=True)

    def _move_bar(self, step: Progress) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        if self.bars is None:
            self.bars = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), console=Console(stderr=True),
            )  # fmt: skip
            self.bars.start()
        if step.stage not in self.tasks:
            self.tasks[step.stage] = self.bars.add_task(step.stage, total=step.total, rate="")
        rate, _ = self._speed(step)
        self.bars.update(self.tasks[step.stage], completed=step.done, total=step.total, rate=f"{rate:.0f}/s")
        if step.done >= step.total:
            self.bars.stop_task(self.tasks[step.stage])

    def _print_step(self, step: Progress) -> None:
        now = time.monotonic()
        rate, left = self._speed(step)
        since = now - self.last_line.setdefault(step.stage, now)
        if since >= PLAIN_EVERY_S or (self.verbose and step.done >= step.total):
            self.last_line[step.stage] = now
            self._print(f"{step.stage}: {step.done}/{step.total}, {rate:.1f}/s, {left:.0f} s left")

    def _speed(self, step: Progress) -> tuple[float, float]:
        now = time.monotonic()
        start, first = self.began.setdefault(step.stage, (now, step.done))
        rate = (step.done - first) / (now - start) if now > start else 0.0
        return rate, (step.total - step.done) / rate if rate > 0 else 0.0


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """Turns expected errors into one message and an exit code, and Ctrl-C, SIGTERM or SIGUSR1 into exit 75."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        def stop(_signal: int, _frame: FrameType | None) -> None:
            raise KeyboardInterrupt

        for name in stopping.SIGNALS:
            signal.signal(getattr(signal, name), stop)
        try:
            return command(*args, **kwargs)
        except (KeyboardInterrupt, Stopped):
            typer.echo(stopping.MESSAGE, err=True)
            raise typer.Exit(Stopped.exit_code) from None
        except GeneragError as error:
            if kwargs.get("debug"):
                raise
            show_error(error)
            raise typer.Exit(error.exit_code) from None
        except BrokenPipeError:
            _give_up_stdout()
            raise typer.Exit(1) from None
        except OSError as error:
            if kwargs.get("debug"):
                raise
            show_error(_describe(error))
            try:
                sys.stdout.flush()
            except OSError:  # it is stdout that failed; what is left in it would fail again, and change the exit code
                _give_up_stdout()
            raise typer.Exit(1) from None

    return run


def _give_up_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show_error(error: GeneragError) -> None:
    """Prints what went wrong and what to do about it."""
    typer.echo(f"error: {error.message}", err=True)
    for line in error.hint.splitlines():
        typer.echo(f"       {line}", err=True)


def _describe(error: OSError) -> GeneragError:
    """What the operating system refused, in words; the stages say more where they can."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return GeneragError(
            f"disk full{f' while writing {error.filename}' if error.filename else ''}",
            "Free some space, then run the same command again.",
        )
    what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    return GeneragError(what, "The operating system refused this; --debug shows where.")


def print_json(content: Any) -> None:
    """One JSON document on stdout; NaN is not JSON, so undefined values must come as None."""
    typer.echo(json.dumps(content, indent=1, allow_nan=False))


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, err: bool = False, left: Sequence[str] = ()
) -> None:
    """A table: rich on a terminal, aligned plain text elsewhere; the first column and those in `left` begin alike."""
    at_left = [i == 0 or name in left for i, name in enumerate(columns)]
    stream = sys.stderr if err else sys.stdout
    if stream.isatty():
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table(title=title, title_justify="left")
        for to_left, name in zip(at_left, columns, strict=True):
            table.add_column(name, justify="left" if to_left else "right")
        for row in rows:
            table.add_row(*map(escape, row))
        Console(file=stream).print(table)
        return
    widths = [max(len(r[i]) for r in (columns, *rows)) for i in range(len(columns))]
    typer.echo(title, err=err)
    for row in (columns, *rows):
        cells = [c.ljust(w) if to_left else c.rjust(w) for c, w, to_left in zip(row, widths, at_left, strict=True)]
        typer.echo("  ".join(cells).rstrip(), err=err)
