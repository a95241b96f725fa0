"""A command line within a command line: what follows `--` must be one that generag takes, and goes into a file."""

from collections.abc import Sequence
from pathlib import Path

import typer

from genrag_cli.errors import OutputError, UsageError
from genrag_cli.pipeline.jobs.line import PER_SLIDE, Line


def parse_line(words: Sequence[str]) -> Line:
    """Parses the words as the command itself would.

    Args:
        words: 'retrieve', slides and options; a leading 'generag' may be there.

    Raises:
        UsageError: for a command that does not work on slide after slide, and one without slides. What the command's
            own parser refuses, it refuses in its own words, also with exit code 2.
    """
    from genrag_cli.cli.app import app

    said = tuple(words[1:] if words and words[0] == "generag" else words)
    if not said or said[0] not in PER_SLIDE:
        found = f"{said[0]!r} does not work on slide after slide" if said else "no command line was given"
        raise UsageError(found, f"Write one of {', '.join(PER_SLIDE)} after --, as in: -- retrieve slides/ --out out/")
    command = typer.main.get_group(app).commands[said[0]]
    context = command.make_context(f"generag {said[0]}", list(said[1:]))
    given = context.params
    if not given["slides"]:
        raise UsageError(f"{said[0]} without slides", "Name slides, folders, globs, or a manifest.")
    options: list[str] = []
    for option in command.params:
        source = context.get_parameter_source(option.name)
        if option.param_type_name == "option" and source is not None and source.name in ("COMMANDLINE", "ENVIRONMENT"):
            options += _write(option.opts, option.secondary_opts, given[option.name])
    out = given["out"]
    return Line(
        words=said,
        options=tuple(options),
        slides=tuple(map(str, given["slides"])),
        out=Path() if out is None else out,
        backbone=given["backbone"],
        bank=given["bank"],
    )


def _write(flags: Sequence[str], off: Sequence[str], value: object) -> list[str]:
    """An option back into words, by its longest name."""
    name = max(flags, key=len)
    if isinstance(value, bool):
        return [name if value else max(off, key=len)]
    values = value if isinstance(value, list | tuple) else [value]
    return [word for one in values for word in (name, str(one))]


def put_out(text: str, file: Path | None, start: str, *, overwrite: bool, dry_run: bool) -> None:
    """Writes a text into a file and says how it is started, or prints it on stdout.

    Raises:
        OutputError: where another text is there already.
    """
    from genrag_cli.stores.atomic import new_file

    if file is None or dry_run:
        if file is not None:
            typer.echo(f"would write {file}", err=True)
        typer.echo(text, nl=False)
        return
    if file.exists() and not overwrite and file.read_text(encoding="utf-8") != text:
        raise OutputError(
            f"{file} is there already and says something else", "Give another --out-file, or --overwrite to replace it."
        )
    with new_file(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
    typer.echo(f"{file}: written; start it with: {start}", err=True)
