"""Several slides in one command: a bad one is recorded and the others go on."""

from collections.abc import Callable, Sequence
from pathlib import Path

from genrag_cli.cli.console import ConsoleListener, print_json, show_error
from genrag_cli.errors import GeneragError, SomeInputsFailed, UsageError


def for_each_slide(
    slides: Sequence[Path],
    out: Path,
    ending: str,
    work: Callable[[Path], dict[str, object]],
    listener: ConsoleListener,
    *,
    as_json: bool,
) -> None:
    """Works on every slide.

    Raises:
        UsageError: where several slides would go into one file.
        GeneragError: what went wrong, where only one slide was given.
        SomeInputsFailed: where some of several failed (exit 3); where all did, a GeneragError (exit 1).
    """
    if len(slides) > 1 and out.name.endswith(ending):
        raise UsageError(f"--out {out} is one file, {len(slides)} slides were given", "Give a folder.")
    results: list[dict[str, object]] = []
    failed = 0
    try:
        for slide in slides:
            try:
                results.append(work(slide))
            except GeneragError as error:
                if len(slides) == 1:
                    raise
                failed += 1
                listener.close()
                show_error(error)
                results.append({"slide": str(slide), "error": error.message, "hint": error.hint})
    finally:
        listener.close()
    if as_json:
        print_json({"slides": results})
    if failed:
        names = ", ".join(str(r["slide"]) for r in results if "error" in r)
        kind = SomeInputsFailed if failed < len(slides) else GeneragError
        raise kind(f"{failed} of {len(slides)} slides failed: {names}", "The reasons stand above.")
