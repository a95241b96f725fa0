"""Several slides in one command: a bad one is recorded and the others go on."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from genrag_cli.cli.console import ConsoleListener, print_json, show_error
from genrag_cli.errors import GeneragError, SomeInputsFailed, UsageError


def for_each_slide(
    slides: Sequence[Path],
    out: Path,
    endings: tuple[str, ...],
    work: Callable[[Path], dict[str, object]],
    listener: ConsoleListener,
    *,
    as_json: bool,
) -> None:
    """Works on every slide.

    Args:
        slides: files or folders.
        out: one file (its name has one of `endings`) or a folder.
        endings: of the files that `work` writes.
        work: does one slide and returns what is to be known about it.
        listener: told what happens.
        as_json: print what `work` returned, and what failed, as one document.

    Raises:
        UsageError: where several slides would go into one file, or `out` is neither such a file nor a folder.
        GeneragError: what went wrong, where only one slide was given.
        SomeInputsFailed: where some of several failed (exit 3); where all did, a GeneragError (exit 1).
    """
    _expect_places(slides, out, endings)
    results: list[dict[str, object]] = []
    failed = 0
    try:
        for slide in slides:
            try:
                results.append(work(slide))
            except GeneragError as error:
                failed += 1
                results.append({"slide": str(slide), "error": error.message, "hint": error.hint})
                if len(slides) == 1:
                    if as_json:
                        print_json({"slides": results})
                    raise
                listener.close()
                show_error(error)
    finally:
        listener.close()
    if as_json:
        print_json({"slides": results})
    if failed:
        names = ", ".join(str(r["slide"]) for r in results if "error" in r)
        kind = SomeInputsFailed if failed < len(slides) else GeneragError
        raise kind(f"{failed} of {len(slides)} slides failed: {names}", "The reasons stand above.")


def _expect_places(slides: Sequence[Path], out: Path, endings: tuple[str, ...]) -> None:
    if out.name.endswith(endings):
        if len(slides) > 1:
            raise UsageError(f"--out {out} is one file, {len(slides)} slides were given", "Give a folder.")
        return
    if out.is_file():
        raise UsageError(
            f"--out {out} is a file that is there and does not end in {' or '.join(endings)}",
            "Give a folder, or a file with such a name.",
        )
    names = Counter(slide.name if slide.is_dir() else slide.stem for slide in slides)
    if twice := [name for name, times in names.items() if times > 1]:
        raise UsageError(
            f"{names[twice[0]]} of the slides are called {twice[0]}, so they would be written into one file",
            "Give them in commands of their own, each with another --out.",
        )
