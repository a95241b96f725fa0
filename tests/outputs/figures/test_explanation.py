from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from genrag_cli.errors import OutputError
from genrag_cli.outputs.figures import Explanation, OmegaSweep, Reference, draw_explanation
from genrag_cli.outputs.figures.contributions import _break, _cut_at, _list_terms
from genrag_cli.outputs.figures.explanation import count_decimals

TILE = np.full((8, 8, 3), (200, 30, 120), np.uint8)


def make(k: int = 2, n: int = 3, *, tiles: bool = True, sweep: bool = True) -> Explanation:
    rng = np.random.default_rng(k)
    refs = [
        Reference(f"{i}x1", "P1_1", "P1" if i else "", 0.3 / (i + 1), *rng.normal(size=(2, k)), TILE if tiles else None)
        for i in range(n)
    ]
    base = [("bank mean", rng.uniform(size=k))]
    others = rng.normal(size=k)
    total = base[0][1] + others + sum((r.contribution for r in refs), np.zeros(k))
    omegas = np.linspace(0, 1, 5)
    swept = OmegaSweep(omegas, np.linspace(1, 0.2, 5), total + rng.normal(size=(5, k)), 0.25)
    return Explanation(
        "3x4", "P3_1", [f"GENE{i}" for i in range(k)], "log1p_cp10k", total, base, refs, 7, others,
        swept if sweep else None, tile=TILE if tiles else None, tile_um=200.0,
    )  # fmt: skip


@pytest.mark.parametrize(("k", "n", "tiles"), [(1, 8, True), (2, 0, True), (4, 8, True), (4, 8, False)])
def test_a_spot_is_drawn_at_one_size_with_one_to_four_genes(tmp_path: Path, k: int, n: int, tiles: bool) -> None:
    draw_explanation(tmp_path / "x.png", make(k, n, tiles=tiles))
    with Image.open(tmp_path / "x.png") as image:
        assert image.size == (1430, 880)
        shown = np.abs(np.asarray(image)[..., :3].astype(int) - TILE[0, 0]).max(axis=2) < 4
    assert (shown.sum() > 5000) == tiles
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]


def test_no_text_leaves_the_figure_or_covers_other_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    monkeypatch.setattr("genrag_cli.outputs.figures.explanation.save_figure", lambda figure, path: kept.append(figure))
    given = replace(make(4, 8), genes=["COL1A1", "ERBB2", "CD3E", "IGHG1"], notes=("a line", "another"))
    draw_explanation(tmp_path / "x.png", given)
    (figure,) = kept
    figure.canvas.draw()
    unseen = [
        tick.label1
        for axes in figure.axes
        for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim()))
        for tick in axis.get_major_ticks()
        if not min(low, high) <= tick.get_loc() <= max(low, high)
    ]
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip() and t not in unseen]
    texts = [t for t in texts if t.get_window_extent().width]
    assert min(t.get_fontsize() for t in texts) >= 9
    boxes = [t.get_window_extent() for t in texts]
    assert all(b.x0 >= 0 and b.y0 >= 0 and b.x1 <= 1430 and b.y1 <= 880 for b in boxes)
    for i, box in enumerate(boxes):
        covered = [t.get_text() for t, other in zip(texts[i + 1 :], boxes[i + 1 :], strict=True) if box.overlaps(other)]
        assert not covered, (texts[i].get_text(), covered)


@pytest.mark.parametrize("ending", ["pdf", "svg"])
def test_a_spot_is_drawn_for_paper_too(tmp_path: Path, ending: str) -> None:
    draw_explanation(tmp_path / f"x.{ending}", make(sweep=False))
    assert (tmp_path / f"x.{ending}").stat().st_size > 5000


def test_terms_add_up_to_the_predicted_value_or_say_what_is_missing() -> None:
    whole = make()
    assert [t.name for t in _list_terms(whole)] == ["bank mean", "1  P1_1", "2  P1_1", "3  P1_1", "7 other references"]
    short = _list_terms(replace(whole, predicted=whole.predicted + 0.5))
    assert short[-1].name == "rest"
    np.testing.assert_allclose(short[-1].values, 0.5)
    np.testing.assert_allclose(sum(t.values for t in short), whole.predicted + 0.5)


def test_genes_that_a_reference_or_the_spot_did_not_measure_are_no_obstacle(tmp_path: Path) -> None:
    given = make()
    blank = replace(given.references[0], expression=np.array([np.nan, 1.0]))
    draw_explanation(tmp_path / "x.png", replace(given, references=[blank], measured=np.array([np.nan, 2.0])))
    assert (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"genes": []}, "1 to 4 genes fit, found 0"),
        ({"genes": list("abcde")}, "found 5"),
        ({"references": make(2, 9).references}, "at most 8 references fit, found 9"),
        ({"others": np.zeros(3)}, r"others should be of shape \(2,\), found \(3,\)"),
        ({"base": [("bank mean", np.zeros(1))]}, "base 'bank mean' should be"),
        ({"measured": np.zeros(1)}, "measured should be"),
        ({"references": make(1, 1).references}, "expression of 0x1 should be"),
        ({"sweep": OmegaSweep(np.zeros(3), np.zeros(2), np.zeros((3, 2)), 0.0)}, "kept should be"),
        ({"tile": np.zeros((4, 4), np.uint8)}, "tile"),
    ],
)
def test_input_that_does_not_fit_is_refused(tmp_path: Path, change: dict, said: str) -> None:
    with pytest.raises(OutputError, match=said):
        draw_explanation(tmp_path / "x.png", replace(make(), **change))
    assert list(tmp_path.iterdir()) == []


def test_small_terms_on_a_large_one_are_drawn_large_and_bars_that_are_cut_say_so() -> None:
    assert _cut_at([3.0, 3.2, 2.9, 3.1, 4.0]) == pytest.approx(2.9 - 0.25 * 1.1)
    assert _cut_at([3.0, 1.0, 2.9]) == 0
    assert _cut_at([3.0, -0.1, 2.9]) == 0
    assert _cut_at([3.0, 3.0]) == 0
    figure = Figure()
    for start, strokes in ((2.0, 2), (0.0, 0)):
        axis = figure.add_subplot()
        _break(axis, 0, 0.0, 2.0, start)
        _break(axis, 1, 2.5, 2.0, start)
        assert len(axis.lines) == strokes


def test_small_additions_get_decimals_enough_to_tell_them_apart() -> None:
    given = make(3, 1)
    small = replace(given.references[0], contribution=np.array([0.5, 0.02, -0.003]))
    assert count_decimals(replace(given, references=[small], others=np.zeros(3))) == [2, 3, 4]
    assert count_decimals(replace(given, references=[], others=np.zeros(3))) == [2, 2, 2]
