"""`generag doctor`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from genrag_cli.cli import options as opt
from genrag_cli.cli.console import guarded, print_json
from genrag_cli.errors import GeneragError


@guarded
def doctor(
    backbone: opt.BackboneName = opt.DEFAULT_BACKBONE,
    bank: opt.Bank = opt.DEFAULT_BANK,
    out: Annotated[Path, typer.Option("--out", help="Where results are going to be written.")] = Path(),
    device: opt.Device = None,
    self_test: Annotated[
        bool, typer.Option("--self-test/--no-self-test", help="Predict a made-up slide, about ten seconds.")
    ] = True,
    dry_run: opt.DryRun = False,
    json: opt.Json = False,
    debug: opt.Debug = False,  # noqa: ARG001 - read by `guarded`
) -> None:
    """Say whether this machine can do the work, and what to do where it cannot; exit code 1 where there is a problem.

    Versions, devices, memory, disks, the model hub, weights, the bank, and a small prediction that is checked.
    """
    from genrag_cli.pipeline.doctor import Patient, examine, list_checks

    named = bank if bank != opt.DEFAULT_BANK or bank.exists() else None
    patient, findings = Patient(backbone, named, out, device, self_test), []
    if dry_run:
        typer.echo(f"would check {', '.join(list_checks(patient))}", err=True)
        if json:
            print_json({"checks": list_checks(patient), "dry_run": True})
        return
    for found in examine(patient):
        findings.append(found)
        if not json:
            typer.echo(f"{found.state:<8}{found.check}: {found.text}")
            if found.remedy:
                typer.echo(f"        {found.remedy}")
    problems = [found.check for found in findings if found.state == "problem"]
    if json:
        print_json({"findings": [asdict(found) for found in findings], "problems": len(problems)})
    if problems:
        raise GeneragError(
            f"{len(problems)} of {len(findings)} findings are problems: {', '.join(problems)}",
            "What to do stands below each.",
        )
