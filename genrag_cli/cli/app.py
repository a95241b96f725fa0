"""The command tree. Importing it must stay cheap: commands import the pipeline when they run."""

from typing import Annotated

import typer

from genrag_cli import __version__
from genrag_cli.cli import backbones, bank, cohort, workflow
from genrag_cli.cli.build_bank import build_bank
from genrag_cli.cli.demo import demo
from genrag_cli.cli.doctor import doctor
from genrag_cli.cli.embed import embed
from genrag_cli.cli.evaluate import evaluate
from genrag_cli.cli.explain import explain
from genrag_cli.cli.export import export
from genrag_cli.cli.inspect import inspect
from genrag_cli.cli.options import TAKES_A_LINE
from genrag_cli.cli.plot import plot
from genrag_cli.cli.retrieve import retrieve
from genrag_cli.cli.slurm import slurm
from genrag_cli.cli.status import status
from genrag_cli.cli.tune import tune
from genrag_cli.cli.verify import verify

app = typer.Typer(
    name="generag",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 some inputs failed, 75 stopped on request and resumable.",
)
app.command("build-bank")(build_bank)
app.command("inspect")(inspect)
app.command("embed")(embed)
app.command("tune")(tune)
app.command("retrieve")(retrieve)
app.command("evaluate")(evaluate)
app.command("status")(status)
app.command("export")(export)
app.command("explain")(explain)
app.command("plot")(plot)
app.command("demo")(demo)
app.command("doctor")(doctor)
app.command("verify")(verify)
app.command("slurm", context_settings=TAKES_A_LINE)(slurm)
app.add_typer(backbones.app, name="backbones")
app.add_typer(bank.app, name="bank")
app.add_typer(cohort.app, name="cohort")
app.add_typer(workflow.app, name="workflow")


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"generag {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Spatial gene expression from H&E slides, by retrieval from a bank of measured spots."""


def main() -> None:
    """Entry point of the console script."""
    app()
