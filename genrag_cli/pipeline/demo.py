"""The main job on a made-up cohort: build a bank from two patients, predict the third, score it, draw it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from genrag_cli.backbones.base import Backbone
from genrag_cli.cohorts import open_cohort
from genrag_cli.pipeline.bank_options import BankOptions
from genrag_cli.pipeline.batch.work import do_one
from genrag_cli.pipeline.build_bank import build_bank
from genrag_cli.pipeline.embed import Embedding
from genrag_cli.pipeline.evaluate import evaluate_prediction
from genrag_cli.pipeline.loading import Loaded
from genrag_cli.pipeline.options import RunOptions, SlideOptions, SolveOptions
from genrag_cli.pipeline.plot import draw_prediction
from genrag_cli.pipeline.query_space import QuerySpace
from genrag_cli.pipeline.retrieve import Retrieval
from genrag_cli.pipeline.tuning.choice import choose_tuning
from genrag_cli.pipeline.tuning.tune import tune_bank
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


def plan_demo(out: Path, backbone: str, listener: Listener) -> None:
    """Says what `run_demo` would make, and makes nothing."""
    listener.say(f"would write to {out}, or find there, with backbone {backbone}:")
    for what in (
        "train/: a made-up cohort of three patients", "generag-bank.zarr/: a bank of two of them, tuned",
        "embeddings and prediction of the third", "a picture of some predicted genes beside the measured ones",
    ):  # fmt: skip
        listener.say(f"  {what}")


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
    listener.say(f"\n$ generag tune {bank_folder}")
    tune_bank(
        bank_folder, backbone.card.name, by="auto", seed=run.seed, overwrite=run.overwrite, dry_run=False,
        listener=listener,
    )  # fmt: skip
    bank = Bank.open(bank_folder, backbone.card.name)
    options = SlideOptions(spots=spots)
    listener.say(f"\n$ generag embed {held.slide} --spots {spots} {where} --out {out}")
    embeddings, _ = do_one(Embedding(backbone, out, options, bank.geometry, run), held.slide, listener)
    listener.say(f"\n$ generag retrieve {held.slide} --spots {spots} {where} --genes all --out {out}")
    solve_options = SolveOptions()
    tuning = choose_tuning(bank, solve_options, guessed=False, listener=listener)
    with QuerySpace.of(bank, solve_options, run, listener, scratch=out, tuning=tuning) as space:
        work = Retrieval(
            bank, space, Loaded(backbone), out, options, solve_options, run, genes="all", argv="generag demo"
        )
        path, _ = do_one(work, held.slide, listener)
    listener.say(f"\n$ generag evaluate {path} --truth {spots}")
    found = evaluate_prediction(path, spots, allow_short=False, seed=run.seed, listener=listener)
    prediction = found.prediction
    picture = out / f"{path.name.removesuffix('.h5ad')}.png"
    listener.say(f"\n$ generag plot {path} --truth {spots} --out {picture}")
    genes = draw_prediction(picture, prediction, truth=spots, listener=listener)
    files = {
        "cohort": train,
        "bank": bank_folder,
        "embeddings": embeddings,
        "prediction": path,
        "picture": picture,
    }
    return DemoResult(found.scores, prediction.about["unit"], files, genes)
