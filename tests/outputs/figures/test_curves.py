"""Gene ranks, tuning curves and scores."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genrag_cli.errors import OutputError
from genrag_cli.outputs.figures import CurvePanel, ScoreRow, draw_curves, draw_gene_ranks, draw_scores

RNG = np.random.default_rng(0)


def has_colour(path: Path, colour: tuple[int, int, int]) -> bool:
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return bool((np.abs(pixels - colour).max(axis=2) < 8).sum() > 20)


BLUE, VERMILLION = (0, 114, 178), (213, 94, 0)


def test_gene_ranks_do_not_depend_on_the_order_of_genes(tmp_path: Path) -> None:
    r = RNG.uniform(-0.2, 0.8, 400)
    draw_gene_ranks(tmp_path / "a.png", [("retrieval", r)])
    draw_gene_ranks(tmp_path / "b.png", [("retrieval", np.sort(r))])
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_gene_ranks_take_methods_of_different_length_and_undefined_genes(tmp_path: Path) -> None:
    curves = [("retrieval", np.array([0.4, np.nan, 0.2])), ("first guess", RNG.uniform(size=60)), ("one", np.ones(1))]
    draw_gene_ranks(tmp_path / "r.png", curves, title="P1_1")
    assert has_colour(tmp_path / "r.png", BLUE)
    assert [p.name for p in tmp_path.iterdir()] == ["r.png"]


@pytest.mark.parametrize(
    ("curves", "said"),
    [
        ([], "found 0"),
        ([("a", np.ones(3))] * 8, "found 8"),
        ([("all bad", np.full(3, np.nan))], "'all bad' has no defined correlation"),
        ([("flat", np.ones((3, 2)))], r"shape \(3, 2\)"),
    ],
)
def test_gene_ranks_that_cannot_be_drawn_are_refused(tmp_path: Path, curves, said: str) -> None:
    with pytest.raises(OutputError, match=said):
        draw_gene_ranks(tmp_path / "r.png", curves)
    assert list(tmp_path.iterdir()) == []


def panel(**change):
    given = {"title": "omega", "x": [0, 0.25, 1.0], "folds": RNG.uniform(0.2, 0.5, (4, 3)), "chosen": 0.25}
    return CurvePanel(**(given | change))


def test_curves_of_numbers_and_words_are_drawn_with_the_chosen_value(tmp_path: Path) -> None:
    words = panel(title="context", x=["none", "ring"], folds=np.array([[0.2, np.nan]]), chosen="none", note="1 fold")
    many = panel(x=np.logspace(-4, -1, 13), folds=RNG.uniform(size=(2, 13)), chosen=None, log_x=True)
    for ending in ("png", "pdf", "svg"):
        draw_curves(tmp_path / f"c.{ending}", [panel(), words, many, panel()], title="tuned")
    assert has_colour(tmp_path / "c.png", VERMILLION)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("panels", "said"),
    [
        ([], "no curves"),
        ([panel(folds=np.zeros((2, 4)))], r"should be of shape \(2, 3\), found \(2, 4\)"),
        ([panel(folds=np.zeros((0, 3)))], "3 values, 0 folds"),
        ([panel(chosen=0.3)], "0.3 was not among the values 0, 0.25, 1.0"),
        ([panel(x=["a", "b", "c"], chosen="d")], "d was not among the values a, b, c"),
    ],
)
def test_curves_that_cannot_be_drawn_are_refused(tmp_path: Path, panels, said: str) -> None:
    with pytest.raises(OutputError, match=said):
        draw_curves(tmp_path / "c.png", panels)


def test_scores_are_drawn_with_the_method_in_colour(tmp_path: Path) -> None:
    rows = [
        ScoreRow(
            method, metric, value, None if value is None else value - 0.1, None if value is None else value + 0.1, own
        )
        for metric in ("PCC-10", "PCC-50", "PCC-300", "MSE", "RVD")
        for method, value, own in (("retrieval", 0.4, True), ("shuffled", 0.1, False), ("bank mean", None, False))
    ]
    draw_scores(tmp_path / "s.png", rows, title="core", note="bars: 95 %")
    assert has_colour(tmp_path / "s.png", BLUE)
    draw_scores(tmp_path / "t.png", [ScoreRow("bank mean", "PCC-10", None)])
    assert not has_colour(tmp_path / "t.png", BLUE)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "no scores"),
        ([ScoreRow("a", "MSE", 1.0)] * 2, "two values"),
        ([ScoreRow("a", "MSE", 1.0, 2.0, 0.0)], "a has MSE from 2.0 to 0.0"),
    ],
)
def test_scores_that_cannot_be_drawn_are_refused(tmp_path: Path, rows, said: str) -> None:
    with pytest.raises(OutputError, match=said):
        draw_scores(tmp_path / "s.png", rows)
