import numpy as np
import pytest
from PIL import Image

from genrag_cli.outputs import overlay
from genrag_cli.outputs.overlay import tissue_overlay, write_overlay

PINK = (230, 180, 210)


@pytest.fixture
def overview():
    return np.tile(np.array(PINK, np.uint8), (200, 300, 1))


@pytest.fixture
def mask():
    out = np.zeros((200, 300), bool)
    out[50:150, 100:250] = True
    return out


def places(picture, colour):
    """x and y of the px of a colour."""
    return np.argwhere((picture == colour).all(axis=2))[:, ::-1]


NOWHERE = np.zeros((0, 2))


def test_the_longer_side_has_the_length_asked_for(overview, mask):
    assert tissue_overlay(overview, mask, 0.1, NOWHERE, 100.0).shape == (1000, 1500, 3)
    assert tissue_overlay(overview, mask, 0.1, NOWHERE, 100.0, long_side=60).shape == (40, 60, 3)


def test_the_outline_runs_around_the_tissue_and_nowhere_else(overview, mask):
    picture = tissue_overlay(overview, mask, 0.1, NOWHERE, 100.0)
    line = places(picture, overlay._CONTOUR)
    assert line.min(axis=0) == pytest.approx([500, 250], abs=1)
    assert line.max(axis=0) == pytest.approx([1249, 749], abs=1)
    inside = (line[:, 0] > 503) & (line[:, 0] < 1246) & (line[:, 1] > 253) & (line[:, 1] < 746)
    assert not inside.any()
    assert (picture[5, 5] == PINK).all()
    assert (picture[500, 900] == PINK).all()


def test_every_spot_is_marked_where_it_is(overview, mask):
    centres = np.array([[1205.0, 805.0], [2000.0, 1200.0]])
    marks = places(tissue_overlay(overview, mask, 0.1, centres, 100.0), overlay._SPOT)
    for x, y in centres / 2:  # 0.1 px of the overview, five px of the picture for each of these
        near = marks[np.abs(marks - [x, y]).max(axis=1) < 10]
        assert near.mean(axis=0) + 0.5 == pytest.approx([x, y], abs=0.6)
        assert 3 < len(near) < 100
    assert (np.abs(marks[:, None] - centres / 2).max(axis=2) < 10).any(axis=1).all()


def test_marks_of_dense_grids_stay_small(overview, mask):
    xy = np.stack(np.meshgrid(np.arange(1000, 2500, 40.0), np.arange(500, 1500, 40.0)), axis=-1).reshape(-1, 2)
    picture = tissue_overlay(overview, mask, 0.1, xy, 40.0)
    inside = picture[260:740, 510:1240].reshape(-1, 3)
    assert 0.5 < (inside == PINK).all(axis=1).mean() < 1


def test_the_picture_is_written_as_it_is_and_the_same_each_time(overview, mask, tmp_path):
    picture = tissue_overlay(overview, mask, 0.1, np.array([[1500.0, 900.0]]), 100.0)
    for name in ("a.tmp", "b.tmp"):
        write_overlay(picture, tmp_path / name)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.tmp")), picture)
    assert (tmp_path / "a.tmp").read_bytes() == (tmp_path / "b.tmp").read_bytes()
