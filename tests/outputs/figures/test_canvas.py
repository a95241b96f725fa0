from pathlib import Path

import numpy as np
import pytest

from genrag_cli.errors import OutputError
from genrag_cli.outputs.figures.canvas import cut, figure_format, fill_rows, new_figure, save_figure, spread

BEGINS = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}


def plot():
    figure = new_figure(3, 2)
    figure.subplots().plot([1, 2, 3])
    return figure


@pytest.mark.parametrize("ending", BEGINS)
def test_a_figure_is_written_as_its_ending_says_and_nothing_beside_it(tmp_path: Path, ending: str) -> None:
    save_figure(plot(), tmp_path / f"f.{ending}")
    assert (tmp_path / f"f.{ending}").read_bytes().startswith(BEGINS[ending])
    assert [p.name for p in tmp_path.iterdir()] == [f"f.{ending}"]


@pytest.mark.parametrize("ending", BEGINS)
def test_equal_figures_have_equal_bytes(tmp_path: Path, ending: str) -> None:
    for name in "ab":
        save_figure(plot(), tmp_path / f"{name}.{ending}")
    one, other = ((tmp_path / f"{name}.{ending}").read_bytes() for name in "ab")
    assert one == other
    assert b"matplotlib" not in one.lower().replace(b"matplotlib.axis", b"")


@pytest.mark.parametrize(("name", "said"), [("f.jpg", r"ends in \.jpg"), ("f", "has no ending"), ("f.png.gz", "gz")])
def test_other_endings_are_refused(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(OutputError, match=said) as refused:
        figure_format(tmp_path / name)
    assert ".png, .pdf or .svg" in refused.value.message


def test_capital_endings_are_endings(tmp_path: Path) -> None:
    assert figure_format(tmp_path / "F.PDF") == "pdf"


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write .*p\.png"):
        save_figure(plot(), tmp_path / "absent" / "p.png")


def test_failed_write_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args, **options):
        raise OSError("disk full")

    (tmp_path / "p.png").write_bytes(b"old")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(OutputError, match="disk full"):
        save_figure(plot(), tmp_path / "p.png")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("p.png", b"old")]


def test_labels_are_moved_apart_in_their_order_and_no_more_than_needed() -> None:
    np.testing.assert_allclose(spread([0.0, 5.0], 1.0), [0, 5])
    np.testing.assert_allclose(spread([2.0, 2.0], 1.0), [1.5, 2.5])
    moved = spread([0.3, 0.1, 0.2, 9.0], 1.0)
    assert moved.argsort().tolist() == [1, 2, 0, 3]
    assert np.diff(np.sort(moved)).min() >= 1 - 1e-9
    assert moved[3] == 9


def test_rows_are_filled_evenly() -> None:
    assert [fill_rows(n, 4) for n in (1, 4, 5, 6, 9, 12)] == [1, 4, 3, 3, 3, 4]


def test_long_names_keep_both_ends() -> None:
    assert cut("short", 1.0) == "short"
    assert cut("Block_A_Section_12", 0.8) == "Blo\u2026n_12"
