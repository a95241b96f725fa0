"""The main job in small, checked: a made-up slide to tiles, embeddings, weights and a file, and weights by an oracle.

Everything is made in a folder that is taken away. Knows what the results must satisfy; measures no speed.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genrag_cli.backbones.registry import load_backbone
from genrag_cli.cohorts import open_cohort
from genrag_cli.outputs import keys
from genrag_cli.outputs.prediction import read_prediction
from genrag_cli.pipeline.bank_options import BankOptions
from genrag_cli.pipeline.batch.work import do_one
from genrag_cli.pipeline.build_bank import build_bank
from genrag_cli.pipeline.loading import Loaded
from genrag_cli.pipeline.options import RunOptions, SlideOptions, SolveOptions
from genrag_cli.pipeline.query_space import QuerySpace
from genrag_cli.pipeline.retrieve import Retrieval
from genrag_cli.retrieval.reference import coordinate_descent
from genrag_cli.retrieval.solve import solve
from genrag_cli.stores.bank import Bank
from genrag_cli.synthetic import solver_problem, write_cohort
from genrag_cli.types import Listener

BACKBONE = "lite0"
SIDE_PX = 800
REFERENCES = 5
"""Asked for in the median: a bank of so few spots has no more to offer."""
GAP = 1e-4
TIGHT_GAP = 1e-7
NEAR = 1e-3
"""By how much a weight may differ from the oracle's, of the largest one."""


@dataclass(frozen=True)
class SelfTest:
    """What came out."""

    device: str
    spots: int
    worst_gap: float
    """Of the made-up slide's spots, as its file says."""
    references: float
    """Mean number of references of a spot."""
    finite: bool
    """Whether all predicted values are numbers."""
    difference: float
    """Largest difference of a weight from the oracle's, of the largest weight."""

    @property
    def wrong(self) -> str:
        """What must not be so; empty where all is well."""
        told = [] if self.spots else ["no spot was found"]
        told += [] if self.references >= 1 else ["spots have no references"]
        told += [] if self.finite else ["predicted values are not finite"]
        told += [] if self.worst_gap <= GAP else [f"a spot did not reach the gap {GAP:g}"]
        told += [] if self.difference <= NEAR else ["the solver and its reference do not agree"]
        return ", ".join(told)


def run_self_test(device: str | None = None) -> SelfTest:
    """Builds a bank of one made-up patient, predicts the slide of another, and solves a small problem two ways.

    Args:
        device: 'cpu', 'cuda', ...; None: a GPU where there is one.

    Raises:
        GeneragError: where a stage fails, as it would for a real slide.
    """
    import torch

    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    run, quiet = RunOptions(device=chosen), Listener()
    with tempfile.TemporaryDirectory(prefix="generag-self-test-") as folder:
        root = Path(folder)
        write_cohort(root / "train", patients=2, size_px=SIDE_PX, n_genes=60)
        cohort = open_cohort(root / "train", patients="prefix")
        held = cohort.sections[-1]
        assert held.slide is not None
        backbone = load_backbone(BACKBONE, chosen)
        build_bank([cohort], root / "bank.zarr", [backbone], BankOptions(exclude=(held.name,)), run, quiet)
        bank, asked = Bank.open(root / "bank.zarr", BACKBONE), SolveOptions(active=REFERENCES, gap=GAP)
        with QuerySpace.of(bank, asked, run, quiet, scratch=root) as space:
            work = Retrieval(bank, space, Loaded(backbone), root / "p.h5ad", SlideOptions(), asked, run, genes="all")
            path, _ = do_one(work, held.slide, quiet)
        stored = read_prediction(path)
        gaps = stored.obs[keys.GAP].to_numpy(np.float64)
        references = float(stored.codes.n_active.mean()) if len(gaps) else 0.0
        finite = bool(np.isfinite(stored.expression.values).all())
    difference = compare_with_reference(chosen)
    return SelfTest(chosen, len(gaps), float(gaps.max(initial=0.0)), references, finite, difference)


def compare_with_reference(device: str) -> float:
    """Largest difference of the solver's weights from coordinate descent's over a small problem, of the largest one."""
    dictionary, queries = solver_problem(40, 300, 4)
    l1, l2 = 0.05, 0.05
    codes = solve(dictionary, queries.T, l1=l1, l2=l2, gap=TIGHT_GAP, device=device).dense()
    wide = dictionary.astype(np.float64)
    oracle = np.array([coordinate_descent(wide, q.astype(np.float64), l1, l2, nonnegative=True) for q in queries])
    return float(np.abs(codes - oracle).max() / np.abs(oracle).max())
