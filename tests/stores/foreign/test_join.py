"""Joining rows to spots by name or by place."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrag_cli.errors import FeaturesError
from genrag_cli.stores.foreign import ForeignRows, in_pixels, join_rows

LATTICE = np.array([(x * 50.0, y * 50.0) for y in range(4) for x in range(5)])
NAMES = np.array([f"s{i}" for i in range(len(LATTICE))])


def rows(names=None, centres=None, **more):
    n = len(names if names is not None else centres if centres is not None else more["centres_um"])
    return ForeignRows(np.arange(n, dtype=np.float32)[:, None], names, centres, Path("F.h5"), "npz", **more)


@given(st.permutations(range(len(NAMES))))
def test_rows_are_found_by_name_whatever_their_order(order):
    found = join_rows(rows(names=NAMES[order]), NAMES, None, within_px=1)
    assert np.array_equal(np.asarray(order)[found], np.arange(len(NAMES)))


@given(st.permutations(range(len(NAMES))), st.integers(0, 2**32 - 1))
def test_rows_are_found_by_place_whatever_their_order(order, seed):
    moved = LATTICE + np.random.default_rng(seed).uniform(-3, 3, LATTICE.shape)
    found = join_rows(rows(centres=moved[order]), NAMES, LATTICE, within_px=5)
    assert np.array_equal(np.asarray(order)[found], np.arange(len(NAMES)))


def test_names_come_before_places():
    found = join_rows(rows(names=NAMES, centres=LATTICE[::-1]), NAMES, LATTICE, within_px=1)
    assert found.tolist() == list(range(len(NAMES)))
    assert found.dtype == np.int64


def test_names_that_differ_by_a_suffix_are_not_matched_and_both_sides_are_shown():
    cut = np.array([f"{n}-1" for n in NAMES])
    with pytest.raises(FeaturesError, match=r"20 of 20 spots are not in it: s0, s1, s2, s3, s4, \.\.\. \(20") as caught:
        join_rows(rows(names=cut, centres=LATTICE), NAMES, LATTICE, within_px=1)
    assert "Spots: s0, s1" in caught.value.hint
    assert "file: s0-1, s1-1" in caught.value.hint
    assert "take the names out of the file" in caught.value.hint


def test_a_row_too_far_away_is_missing_on_one_side_and_extra_on_the_other():
    moved = LATTICE.copy()
    moved[7] += 4
    with pytest.raises(
        FeaturesError, match=r"1 of 20 spots are not in it: s7 .*1 of its 20 rows are no spot: row 7 \(1"
    ):
        join_rows(rows(centres=moved), NAMES, LATTICE, within_px=5)
    assert join_rows(rows(centres=moved), NAMES, LATTICE, within_px=6)[7] == 7


def test_the_distance_itself_is_still_within():
    moved = LATTICE + np.array([3.0, 4.0])
    assert len(join_rows(rows(centres=moved), NAMES, LATTICE, within_px=5)) == 20


def test_two_rows_within_the_distance_are_ambiguous():
    double = np.vstack([LATTICE, LATTICE[4] + 1])
    with pytest.raises(FeaturesError, match="1 spots have several rows within 5 px: s4"):
        join_rows(rows(centres=double), NAMES, LATTICE, within_px=5)


def test_two_spots_may_not_share_a_row():
    near = np.vstack([LATTICE, [[2.0, 0.0]]])
    with pytest.raises(FeaturesError, match="2 spots share the nearest row within 5 px: s0, near"):
        join_rows(rows(centres=LATTICE), np.append(NAMES, "near"), near, within_px=5)


def test_spots_without_a_place_are_missing():
    lost = LATTICE.copy()
    lost[2] = np.nan
    with pytest.raises(FeaturesError, match="1 of 20 spots are not in it: s2"):
        join_rows(rows(centres=LATTICE), NAMES, lost, within_px=5)


def test_um_become_px_only_with_a_pixel_size():
    stamp = rows(centres_um=LATTICE * 0.25)
    with pytest.raises(FeaturesError, match="in um and no pixel size") as caught:
        join_rows(stamp, NAMES, LATTICE, within_px=1)
    assert "--mpp" in caught.value.hint
    placed = in_pixels(stamp, 0.25)
    assert np.array_equal(placed.centres, LATTICE)
    assert placed.mpp == 0.25
    assert in_pixels(placed, 3.0) is placed


def test_wanted_spots_without_a_place_need_names():
    with pytest.raises(FeaturesError, match="the wanted spots have no place"):
        join_rows(rows(centres=LATTICE), NAMES, None, within_px=1)


def test_repeated_wanted_names_are_refused():
    with pytest.raises(FeaturesError, match="repeated names"):
        join_rows(rows(names=NAMES), np.array(["s1", "s1"]), None, within_px=1)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"values": np.ones((3, 2, 2), np.float32)}, r"shape \(3, 2, 2\)"),
        ({"values": np.ones((3, 0), np.float32)}, r"shape \(3, 0\)"),
        ({"values": np.array([[1], [np.nan], [np.inf]], np.float32)}, "2 of 3 rows hold values that are no finite"),
        ({"names": np.array(["a", "b"])}, "2 names for 3 rows"),
        ({"names": np.array(["a", "b", "a"])}, "spot names are not unique: a"),
        ({"centres": np.full((3, 2), np.nan)}, "6 values not finite"),
        ({"centres": np.ones((3, 3))}, r"shape \(3, 3\)"),
        ({"columns": np.array(["g"])}, "1 gene names for 2 columns"),
        ({"columns": np.array(["g", "g"])}, "gene names are not unique: g"),
    ],
)
def test_rows_that_cannot_be_right_are_refused(broken, said):
    sound = {"values": np.ones((3, 2), np.float32), "names": None, "centres": None, "path": Path("F"), "kind": "npz"}
    with pytest.raises(FeaturesError, match=said):
        ForeignRows(**{**sound, **broken})
