"""`generag verify`."""

from pathlib import Path
from typing import Annotated

import typer

from genrag_cli.cli import options as opt
from genrag_cli.cli.console import ConsoleListener, guarded, print_json, print_table
from genrag_cli.errors import OutputError, SomeInputsFailed


@guarded
def verify(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="Predictions, embeddings, banks, or folders of them.", metavar="FILE|FOLDER", show_default=False
        ),
    ],
    dry_run: opt.DryRun = False,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,  # noqa: ARG001 - read by `guarded`
) -> None:
    """Compare files with the digests that travel with them; exit code 0 where all are whole, 3 some, 1 none.

    whole: as written. damaged: cut short, or bytes differ.
    changed: another program wrote into it.
    unsealed: it has no digest, as files of earlier versions; that is no error.
    """
    from genrag_cli.pipeline.verify import find_outputs, verify

    listener = ConsoleListener(quiet=quiet)
    found = find_outputs(paths)
    if dry_run:
        listener.say(f"would read {len(found)} files and folders: {', '.join(map(str, found))}")
        if json:
            print_json({"would_verify": [str(path) for path in found], "dry_run": True})
        return
    try:
        results = list(verify(found, listener))
    finally:
        listener.close()
    states = ("whole", "damaged", "changed", "unsealed")
    counts = {state: sum(one.state == state for one in results) for state in states}
    if json:
        listed = [
            {"path": str(o.path), "kind": o.kind, "state": o.state, "sha256": o.sha256 or None, "reason": o.reason}
            for o in results
        ]
        print_json({"results": listed, **counts})
    else:
        rows = [(str(one.path), one.kind, one.state, one.sha256[:12] or "-", one.reason) for one in results]
        print_table("Digests", ("path", "kind", "state", "sha256", ""), rows, left=("kind", "state", "sha256", ""))
    if wrong := [one for one in results if one.is_wrong]:
        failure = OutputError if len(wrong) == len(results) else SomeInputsFailed
        raise failure(
            f"{len(wrong)} of {len(results)} are not what was written: {', '.join(str(one.path) for one in wrong)}",
            "Make them again: the commands that made them do so with --overwrite.",
        )
