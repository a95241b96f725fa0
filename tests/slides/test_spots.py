import numpy as np
import pytest

from genrag_cli.errors import SlideError, UsageError
from genrag_cli.slides import lattice_places, open_slide, plan_spots, read_spots_csv
from genrag_cli.types import PixelSize
from genrag_cli.units import Mpp

ONE = PixelSize(Mpp(1.0), "test")
SIZES = {"fov_um": 50.0, "pitch_um": 100.0, "tile_px": 50}


@pytest.fixture
def slide(tiff_path):
    with open_slide(tiff_path) as slide:
        yield slide


@pytest.mark.parametrize("sep", [",", "\t"])
def test_spots_are_read_whatever_the_order_of_columns(tmp_path, sep):
    lines = [["y", "name", "note", "x"], ["2", "a", "left", "1.5"], ["4", "b", "", "3"]]
    (tmp_path / "spots.csv").write_text("\ufeff" + "\n".join(sep.join(line) for line in lines) + "\n\n", "utf-8")
    names, centres = read_spots_csv(tmp_path / "spots.csv")
    assert names == ["a", "b"]
    assert centres.tolist() == [[1.5, 2], [3, 4]]


def test_names_may_be_absent(tmp_path):
    (tmp_path / "spots.csv").write_text("x,y\n1,2\n")
    assert read_spots_csv(tmp_path / "spots.csv")[0] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,x\na,1\n", "no column y; found name, x"),
        ("", "no column x and y; found nothing"),
        ("x,y\n", "no spot"),
        ("x,y\n1,2\n3,nan\n", "line 3"),
        ("x,y\n1,2\n3,\n", "line 3"),
        ("x,y\n1\n", "line 2"),
        ("name,x,y\n,1,2\n", "line 2"),
        ("name,x,y\na\0,1,2\n", "bytes of zero"),
        ('name,x,y\n"' + "a" * 200_000 + '",1,2\n', "cannot be read as a spots file"),
    ],
)
def test_what_is_wrong_with_a_spots_file_is_said(tmp_path, text, message):
    (tmp_path / "spots.csv").write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        read_spots_csv(tmp_path / "spots.csv")
    assert "name,x,y" in caught.value.hint


def test_a_missing_spots_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"absent.csv: no such spots file"):
        read_spots_csv(tmp_path / "absent.csv")


def test_spots_keep_their_names_order_and_centres(slide):
    centres = np.array([[300.5, 100], [100, 100], [100, 300]])
    grid = plan_spots(slide, ONE, (["c", "a", "b"], centres), **SIZES)
    assert grid.names.tolist() == ["c", "a", "b"]
    assert np.array_equal(grid.centres, centres)
    assert grid.array_rc.tolist() == [[0, 2], [0, 0], [2, 0]]


def test_given_places_in_the_array_are_kept(slide):
    places = np.array([[7, 3], [8, 3]])
    grid = plan_spots(slide, ONE, (None, np.array([[50, 50], [60, 60]])), array_rc=places, **SIZES)
    assert grid.array_rc.tolist() == places.tolist()
    assert grid.names.tolist() == ["made-up:7_3", "made-up:8_3"]


def test_names_given_twice_are_refused(slide):
    with pytest.raises(SlideError, match="1 spot names are not unique: b"):
        plan_spots(slide, ONE, (["a", "b", "b"], np.array([[10, 10], [20, 20], [30, 30]])), **SIZES)


def test_two_nameless_spots_at_one_place_are_refused(slide):
    with pytest.raises(SlideError, match="not unique") as caught:
        plan_spots(slide, ONE, (None, np.array([[10, 10], [10.5, 10]])), **SIZES)
    assert "give them names" in caught.value.hint


@pytest.mark.parametrize("outside", [[1500, 10], [10, 1200], [-0.1, 10]])
def test_spots_outside_the_slide_are_counted_and_one_is_shown(slide, outside):
    with pytest.raises(SlideError, match=f"1 of 2 spots .* 1500 x 1200 px, e.g. b at x {outside[0]:g}"):
        plan_spots(slide, ONE, (["a", "b"], np.array([[10, 10], outside])), **SIZES)


def test_places_of_a_square_lattice_keep_its_gaps():
    rc = np.array([[0, 0], [0, 3], [5, 1]])
    jitter = np.random.default_rng(0).uniform(-20, 20, (3, 2))
    assert lattice_places(rc[:, ::-1] * 145.0 + 1000 + jitter, 145.0).tolist() == rc.tolist()


def test_places_of_a_hexagonal_lattice_are_unique():
    rows, columns = np.mgrid[:60, :60]
    centres = np.stack([(columns + rows % 2 / 2).ravel() * 100.0, rows.ravel() * 86.6], axis=1)
    assert len(np.unique(lattice_places(centres, 100.0), axis=0)) == 3600


@pytest.mark.real
def test_her2st_spots_get_their_own_array_places(shared_data):
    table = np.loadtxt(shared_data / "her2st" / "spots" / "B4_selection.tsv", skiprows=1)
    places = lattice_places(table[:, 4:6], 290.0)
    known = table[:, [1, 0]] - table[:, [1, 0]].min(axis=0)
    assert (places == known).all(axis=1).mean() > 0.99
