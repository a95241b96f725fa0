"""The main job on a made-up cohort: build a bank from two patients, predict the third, score it, draw it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genrag_cli.backbones.base import Backbone
from genrag_cli.cohorts import open_cohort, open_section
from genrag_cli.evaluation.metrics import pearson_per_gene
from genrag_cli.genes.align import columns
from genrag_cli.genes.scales import to_scale
from genrag_cli.outputs.figures import draw_maps
from genrag_cli.outputs.prediction import StoredPrediction
from genrag_cli.pipeline.bank_options import BankOptions
from genrag_cli.pipeline.build_bank import build_bank
from genrag_cli.pipeline.embed import embed_slide
from genrag_cli.pipeline.evaluate import evaluate_prediction
from genrag_cli.pipeline.options import RunOptions, SlideOptions, SolveOptions
from genrag_cli.pipeline.query_space import QuerySpace
from genrag_cli.pipeline.retrieve import retrieve_slide
from genrag_cli.stores.atomic import new_folder
from genrag_cli.stores.bank import Bank
from genrag_cli.synthetic import write_cohort
from genrag_cli.types import Listener, Score

PATIENTS = "prefix"


@dataclass(frozen=True)
class DemoResult:
    """What the demo made."""

    scores: list[Score]
    unit: str
    files: dict[str, Path]
    genes: tuple[str, ...]
    """The genes of the picture."""


def run_demo(out: Path, load: Callable[[], Backbone], run: RunOptions, listener: Listener) -> DemoResult:
    """`generag demo`.

    Args:
        out: folder for everything.
        load: loads the backbone.
        run: device, workers, seed, overwrite.
        listener: told what happens, with the command that does each step.
    """
    train, bank_folder = out / "train", out / "generag-bank.zarr"
    if not (train / "counts").exists() or run.overwrite:
        listener.say(f"writing a made-up cohort of three patients to {train}")
        with new_folder(train) as temporary:
            write_cohort(temporary, seed=run.seed)
    cohort = open_cohort(train, patients=PATIENTS)
    held = cohort.sections[-1]
    assert held.slide is not None
    spots = f"{train}:{held.name}"
    backbone = load()
    where = f"--bank {bank_folder}"
    listener.say(f"\n$ generag build-bank {train} --patients {PATIENTS} --exclude {held.name} {where}")
    build_bank([cohort], bank_folder, [backbone], BankOptions(exclude=(held.name,)), run, listener)
    bank = Bank.open(bank_folder, backbone.card.name)
    options = SlideOptions(spots=spots)
    listener.say(f"\n$ generag embed {held.slide} --spots {spots} {where} --out {out}")
    embeddings = embed_slide(held.slide, out, backbone, options, bank.geometry, run, listener)
    listener.say(f"\n$ generag retrieve {held.slide} --spots {spots} {where} --genes all --out {out}")
    solve_options = SolveOptions()
    with QuerySpace.of(bank, solve_options, run, listener, scratch=out) as space:
        done = retrieve_slide(
            held.slide, out, bank, space, backbone, slide_options=options, solve_options=solve_options, genes="all",
            expression=True, run=run, listener=listener, argv="generag demo",
        )  # fmt: skip
    listener.say(f"\n$ generag evaluate {done.path} --truth {spots}")
    scores, prediction = evaluate_prediction(done.path, spots, allow_short=False, seed=run.seed, listener=listener)
    picture = out / f"{done.path.name.removesuffix('.h5ad')}.png"
    genes = draw_against_truth(picture, prediction, spots)
    files = {
        "cohort": train,
        "bank": bank_folder,
        "embeddings": embeddings,
        "prediction": done.path,
        "picture": picture,
    }
    return DemoResult(scores, prediction.about["unit"], files, genes)


def draw_against_truth(
    path: Path, prediction: StoredPrediction, truth: str, genes: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Draws predicted beside measured expression of three genes over the slide.

    Args:
        path: PNG to write.
        prediction: with expression.
        truth: COHORT:SECTION with the spots of the prediction.
        genes: which; none: `pick_genes`.
    """
    measured = open_section(truth).load()
    expression = prediction.expression
    if not genes:
        genes = pick_genes(prediction)
    rows = columns(measured.names, expression.names)
    counts = measured.counts[rows][:, columns(measured.genes, list(genes))]
    values = to_scale(counts, measured.total_counts[rows], expression.scale).toarray()
    predicted = expression.values[:, columns(expression.genes, list(genes))]
    image = np.asarray(prediction.spatial["images"]["hires"])
    draw_maps(
        path, prediction.centres, genes, predicted, values, pearson_per_gene(predicted, values).tolist(),
        thumbnail=image, thumb_scale=1 / float(prediction.spatial["scalefactors"]["tissue_hires_scalef"]),
        unit=expression.scale.name, title=prediction.slide_id,
    )  # fmt: skip
    return genes


def pick_genes(prediction: StoredPrediction, n: int = 3) -> tuple[str, ...]:
    """Anchor genes of large variance over the bank whose predictions differ from each other; truth is not looked at."""
    expression = prediction.expression
    there = set(expression.genes.tolist())
    anchors = [gene for gene in prediction.y_init.genes.tolist() if gene in there]
    values = expression.values[:, columns(expression.genes, anchors)].astype(np.float64)
    values = values - values.mean(0)
    values /= np.maximum(np.linalg.norm(values, axis=0), 1e-12)
    chosen: list[int] = []
    for i in range(len(anchors)):
        if len(chosen) < n and all(abs(float(values[:, i] @ values[:, j])) < 0.5 for j in chosen):
            chosen.append(i)
    chosen += [i for i in range(len(anchors)) if i not in chosen][: n - len(chosen)]
    return tuple(anchors[i] for i in chosen)
