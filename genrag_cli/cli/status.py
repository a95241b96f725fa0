"""`generag status`."""

from pathlib import Path
from typing import Annotated

import typer

from genrag_cli.cli import options as opt
from genrag_cli.cli.console import guarded, print_json, print_table


@guarded
def status(
    folder: Annotated[
        Path, typer.Argument(help="Folder of results, as --out named it; looked through.", show_default=False)
    ] = Path(),
    json: opt.Json = False,
    debug: opt.Debug = False,  # noqa: ARG001 - read by `guarded`
) -> None:
    """Show what became of every slide in a folder of results, while workers run and after."""
    from genrag_cli.pipeline.batch.survey import count_states, describe, survey_statuses

    found = survey_statuses(folder)
    counts = count_states(found)
    if json:
        print_json({"folder": str(folder), "counts": counts, "slides": [describe(one) for one in found]})
        return
    rows = []
    for one in found:
        told = one.status
        name = str(one.path.relative_to(folder)).removesuffix(".status.json")
        if told is None:
            rows.append([name, one.state, "", "", "", "", ""])
            continue
        total = told.seconds.get("total")
        rows.append(
            [
                name, one.state, "" if told.spots is None else str(told.spots), "" if total is None else f"{total:.1f}",
                str(told.attempts), told.worker, told.reason.partition("\n")[0],
            ]
        )  # fmt: skip
    print_table(
        ", ".join(f"{n} {state}" for state, n in counts.items() if n),
        ["result", "state", "spots", "seconds", "attempts", "worker", "reason"],
        rows,
        left=("state", "worker", "reason"),
    )
