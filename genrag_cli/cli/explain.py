"""`generag explain`."""

from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genrag_cli.cli import options as opt
from genrag_cli.cli.console import ConsoleListener, guarded, print_json, print_table

if TYPE_CHECKING:
    from genrag_cli.pipeline.explain import Explained
    from genrag_cli.types import Doubles


@guarded
def explain(
    pred: Annotated[Path, typer.Argument(help="Prediction of `generag retrieve`.", show_default=False)],
    spot: Annotated[str, typer.Option("--spot", metavar="NAME", help="Spot of the prediction.", show_default=False)],
    gene: Annotated[
        str | None,
        typer.Option("--gene", metavar="A,B", help="Up to 4 genes of the bank. Default: three that differ."),
    ] = None,
    bank: Annotated[
        Path | None, typer.Option("--bank", help="Where the bank is now. Default: where it was.", show_default=False)
    ] = None,
    slide: Annotated[
        Path | None,
        typer.Option("--slide", help="Where the slide is now, for the spot's tile. Default: where it was."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE.png|pdf|svg",
            help="Picture to write or replace. Default: beside the prediction, NAME.SPOT.png.",
        ),
    ] = None,
    top: Annotated[
        int, typer.Option("--top", min=1, help="References told one by one, the heaviest; the picture shows up to 8.")
    ] = 8,
    truth: Annotated[
        str | None,
        typer.Option("--truth", metavar="FILE|COHORT:SECTION", help="Measured counts: an .h5ad, or a section."),
    ] = None,
    sweep: Annotated[bool, typer.Option("--sweep/--no-sweep", help="Solve the spot again at other omegas.")] = True,
    workers: opt.Workers = None,
    dry_run: opt.DryRun = False,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    debug: opt.Debug = False,  # noqa: ARG001 - read by `guarded`
) -> None:  # fmt: skip
    """Take the values of one spot apart: what each reference adds, their tiles, and what another omega would give."""
    from genrag_cli.cli.setup import make_run
    from genrag_cli.pipeline.explain import ExplainRequest, picture_path, plan_explanation
    from genrag_cli.pipeline.explain import explain as take_apart

    genes = tuple(dict.fromkeys(name.strip() for name in (gene or "").split(",") if name.strip()))
    if gene is not None and not genes:
        raise typer.BadParameter("it names no gene", param_hint="--gene")
    listener = ConsoleListener(quiet=quiet, verbose=verbose)
    run = make_run(listener, device="cpu", workers=workers)
    target = out or picture_path(pred, spot)
    request = ExplainRequest(
        pred, spot, target, genes, bank, slide, top, truth, sweep, run, listener
    )  # fmt: skip
    if dry_run:
        planned = plan_explanation(request)
        if json:
            print_json({"prediction": str(pred), "picture": str(target), "genes": planned.tolist(), "dry_run": True})
        return
    try:
        found = take_apart(request)
    finally:
        listener.close()
    if json:
        print_json({"prediction": str(pred), "picture": str(target), **describe(found)})
    else:
        show(found)


def show(found: "Explained") -> None:
    """The terms of each value, one a line, the heaviest references first; then the values at other omegas."""
    n, terms, genes = min(found.top, len(found.names)), found.terms, found.genes.tolist()
    rows = [
        (
            str(found.names[i]), str(found.patients[i]) or "unknown", f"{found.weights[i]:.4f}",
            f"{found.shares[i]:.1%}", *_pair(terms.measured[i], terms.contributions[i]),
        )
        for i in range(n)
    ]  # fmt: skip
    if left := len(found.names) - n:
        other = (f"{found.weights[n:].sum():.4f}", f"{found.shares[n:].sum():.1%}")
        rows.append((f"{left} other reference{'s' if left > 1 else ''}", "", *other, *_pair(None, found.others(n))))
    rows += [(name, "", "", "", *_pair(None, values)) for name, values in terms.base]
    rows.append(("predicted", "", f"{found.weights.sum():.4f}", "", *_pair(None, found.predicted, sign="")))
    if found.measured is not None:
        rows.append(("measured", "", "", "", *_pair(None, found.measured, sign="")))
    columns = [name for gene in genes for name in (gene, "adds")]
    print_table(
        f"{found.slide}, spot {found.spot} ({found.unit})", ("reference", "patient", "weight", "share", *columns), rows,
        left=("patient",),
    )  # fmt: skip
    if found.sweep is not None:
        typer.echo("")
        swept = zip(found.sweep.solved, found.sweep.kept, found.sweep.predicted, strict=True)
        print_table(
            f"at other omegas (now {found.sweep.present:g}); kept: share of the weight on the prediction's references",
            ("omega", "references", "kept", *genes),
            [
                (f"{s.omega:g}", str(len(s.rows)), _number(kept, ".1%"), *(f"{v:.4f}" for v in values))
                for s, kept, values in swept
            ],
        )


def describe(found: "Explained") -> dict[str, Any]:
    """The same as flat values; what is undefined is None."""
    n, terms, genes = min(found.top, len(found.names)), found.terms, found.genes.tolist()

    def by_gene(values: "Doubles | None") -> dict[str, float | None] | None:
        if values is None:
            return None
        return {gene: _plain(value) for gene, value in zip(genes, values, strict=True)}

    shares, sweep = found.shares, found.sweep
    return {
        "slide": found.slide, "spot": found.spot, "unit": found.unit, "genes": genes,
        "in_prediction": dict(zip(genes, found.in_file.tolist(), strict=True)),
        "present": dict(zip(genes, terms.present.tolist(), strict=True)),
        "predicted": by_gene(found.predicted), "sum_of_terms": by_gene(terms.total),
        "measured": by_gene(found.measured),
        "references": [
            {
                "name": str(found.names[i]), "patient": str(found.patients[i]) or None,
                "weight": float(found.weights[i]), "share": float(shares[i]),
                "measured": by_gene(terms.measured[i]), "adds": by_gene(terms.contributions[i]),
            }
            for i in range(n)
        ],
        "others": {
            "number": len(found.names) - n, "weight": float(found.weights[n:].sum()),
            "share": float(shares[n:].sum()), "adds": by_gene(found.others(n)),
        },
        "base": {name: by_gene(values) for name, values in terms.base},
        "sweep": None if sweep is None else [
            {
                "omega": s.omega, "references": len(s.rows), "kept": _plain(sweep.kept[i]),
                "predicted": by_gene(sweep.predicted[i]),
            }
            for i, s in enumerate(sweep.solved)
        ],
        "notes": list(found.notes),
    }  # fmt: skip


def _pair(measured: "Doubles | None", adds: "Doubles", sign: str = "+") -> list[str]:
    """Two cells per gene."""
    first = [""] * len(adds) if measured is None else [_number(v, ".4f") for v in measured]
    return [cell for pair in zip(first, (_number(v, f"{sign}.4f") for v in adds), strict=True) for cell in pair]


def _number(value: float, how: str) -> str:
    return "n/a" if isnan(value) else format(value, how)


def _plain(value: float) -> float | None:
    return None if isnan(value) else float(value)
