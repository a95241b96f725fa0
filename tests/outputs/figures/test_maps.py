import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genrag_cli.errors import OutputError
from genrag_cli.outputs.figures.maps import _name_judged, draw_maps

YELLOW, PURPLE = (253, 231, 36), (68, 1, 84)


def make_input(n: int = 12, k: int = 3):
    rng = np.random.default_rng(0)
    centres = np.stack(np.meshgrid(np.arange(4) * 100.0, np.arange(3) * 100.0), axis=-1).reshape(-1, 2)[:n] + 80
    return {
        "thumbnail": np.full((40, 50, 3), 220, np.uint8),
        "thumb_scale": 10.0,
        "centres": centres,
        "genes": [f"GENE{i}" for i in range(k)],
        "predicted": rng.normal(size=(len(centres), k)).astype(np.float32),
        "measured": rng.poisson(3, (len(centres), k)).astype(np.float32),
        "r": [0.5, None, float("nan")][:k],
    }


def rows_of(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    panel = pixels[:, : pixels.shape[1] // 2, :3].astype(int)
    return np.nonzero(np.abs(panel - colour).max(axis=2) < 8)[0]


def test_png_is_written_and_nothing_beside_it(tmp_path: Path) -> None:
    draw_maps(tmp_path / "p.png", **make_input(), unit="counts", title="made up")
    with Image.open(tmp_path / "p.png") as image:
        assert image.format == "PNG"
        assert min(image.size) > 400
    assert [p.name for p in tmp_path.iterdir()] == ["p.png"]


def test_measured_row_makes_the_figure_higher(tmp_path: Path) -> None:
    draw_maps(tmp_path / "two.png", **make_input())
    draw_maps(tmp_path / "one.png", **(make_input() | {"measured": None, "r": None}))
    with Image.open(tmp_path / "two.png") as two, Image.open(tmp_path / "one.png") as one:
        assert two.size[0] == one.size[0]
        assert two.size[1] > 1.5 * one.size[1]


def test_spots_are_drawn_where_they_are_with_y_down(tmp_path: Path) -> None:
    given = make_input(k=1) | {"measured": None, "r": None, "thumbnail": np.full((40, 50, 3), 255, np.uint8)}
    given["predicted"] = (given["centres"][:, 1:] > 150).astype(np.float32)
    draw_maps(tmp_path / "p.png", **given)
    pixels = np.asarray(Image.open(tmp_path / "p.png"))
    low, high = rows_of(pixels, PURPLE), rows_of(pixels, YELLOW)
    assert len(low) > 100
    assert low.max() < high.min()


def test_gene_that_does_not_vary_or_is_unknown_is_drawn(tmp_path: Path) -> None:
    given = make_input()
    given["measured"][:, 0] = 0
    given["measured"][:, 1] = np.nan
    draw_maps(tmp_path / "p.png", **given)
    assert (tmp_path / "p.png").stat().st_size > 1000


def test_one_spot_is_drawn(tmp_path: Path) -> None:
    draw_maps(tmp_path / "p.png", **make_input(n=1))
    assert (tmp_path / "p.png").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"predicted": np.zeros((12, 2), np.float32)}, r"predicted should be of shape \(12, 3\), found \(12, 2\)"),
        ({"measured": np.zeros((11, 3), np.float32)}, "measured should be"),
        ({"r": [0.1]}, r"r should be of shape \(3,\), found \(1,\)"),
        ({"thumbnail": np.zeros((4, 5), np.uint8)}, "thumbnail should be"),
        ({"genes": []}, "nothing to draw: 12 spots, 0 genes"),
        ({"genes": [str(i) for i in range(13)]}, "13 genes asked; one figure shows at most 12"),
    ],
)
def test_input_that_does_not_fit_is_refused(tmp_path: Path, change: dict, reason: str) -> None:
    with pytest.raises(OutputError, match=reason):
        draw_maps(tmp_path / "p.png", **(make_input() | change))


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_twelve_genes_fit_without_a_thumbnail(tmp_path: Path, ending: str) -> None:
    given = make_input(k=12) | {"thumbnail": None, "r": [0.1] * 12}
    draw_maps(tmp_path / f"p.{ending}", **given, unit="counts", title="made up")
    assert [p.name for p in tmp_path.iterdir()] == [f"p.{ending}"]


def test_a_row_holds_four_genes_at_most(tmp_path: Path) -> None:
    for k in (4, 8):
        draw_maps(tmp_path / f"{k}.png", **(make_input(k=k) | {"r": None, "measured": None}))
    with Image.open(tmp_path / "4.png") as four, Image.open(tmp_path / "8.png") as eight:
        assert four.size[0] == eight.size[0]
        assert eight.size[1] > 1.5 * four.size[1]


def test_values_that_are_missing_are_grey(tmp_path: Path) -> None:
    given = make_input(k=1) | {"measured": None, "r": None, "thumbnail": None}
    given["predicted"][:6] = np.nan
    draw_maps(tmp_path / "p.png", **given)
    pixels = np.asarray(Image.open(tmp_path / "p.png"))
    assert len(rows_of(pixels, (184, 184, 184))) > 100


def test_many_spots_are_kept_as_pixels_within_a_drawing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_maps(tmp_path / "few.svg", **(make_input() | {"thumbnail": None}))
    monkeypatch.setattr("genrag_cli.outputs.figures.maps._MANY", 10)
    draw_maps(tmp_path / "many.svg", **(make_input() | {"thumbnail": None}))
    few, many = ((tmp_path / f"{name}.svg").read_text().count("<image") for name in ("few", "many"))
    assert many > few


def test_importing_loads_no_matplotlib_and_drawing_no_pyplot(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np, pathlib\n"
        "from genrag_cli.outputs.figures.maps import draw_maps\n"
        "assert 'matplotlib' not in sys.modules\n"
        "z = np.zeros((1, 1), 'f4')\n"
        "draw_maps(pathlib.Path(sys.argv[1]), np.ones((1, 2)), ['g'], z)\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "p.png")], check=True)


def test_a_long_name_over_a_narrow_panel_takes_two_lines() -> None:
    assert _name_judged("ERBB2", 0.5, 3.0) == "ERBB2   PCC 0.50"
    assert _name_judged("ENSG00000123456", None, 1.9) == "ENSG00000123456\nPCC undefined"
