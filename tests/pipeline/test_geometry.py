from pathlib import Path

import pytest

from genrag_cli.cohorts import Section
from genrag_cli.errors import BankError, CohortError, UsageError
from genrag_cli.pipeline.geometry import describe_tiles, expect_crop, expect_geometry, find_geometry, tile_um

STEM = {"crop": "stem", "spot_um": 100.0, "pitch_um": 200.0}


def section(name, spot, pitch):
    return Section(name, None, None, Path(name), None, spot_diameter_um=spot, spot_pitch_um=pitch)


@pytest.mark.parametrize(("mpp", "px"), [(1.0, 224), (0.5, 224), (100 / 224, 224), (0.4, 250), (0.39, 256), (0.3, 332)])
def test_crop_stem_is_224_px_or_twice_half_the_diameter(mpp, px):
    """Half the side is 112 px, or int(diameter // 2) where the diameter is 224 px or more."""
    assert tile_um(STEM, mpp) == pytest.approx(px * mpp)


def test_a_field_of_view_is_the_same_at_any_pixel_size():
    geometry = {"crop": "fov", "fov_um": 112.0, "spot_um": 55.0, "pitch_um": 100.0}
    assert tile_um(geometry, 0.25) == tile_um(geometry, 1.0) == 112.0
    assert "112 um" in describe_tiles(geometry)
    assert "native" in describe_tiles(STEM)


def test_sections_that_agree_give_the_geometry():
    sections = [section("a", 55, 100), section("b", 55, None)]
    assert find_geometry(sections, crop="fov", fov_um=None, pitch_um=None) == {
        "crop": "fov", "fov_um": 110.0, "spot_um": 55.0, "pitch_um": 100.0,
    }  # fmt: skip
    assert "fov_um" not in find_geometry(sections, crop="stem", fov_um=None, pitch_um=None)


def test_sections_that_differ_need_a_person():
    sections = [section("a", 55, 100), section("b", 100, 200)]
    with pytest.raises(CohortError, match="a 55 um, b 100 um"):
        find_geometry(sections, crop="fov", fov_um=None, pitch_um=100)
    settled = find_geometry(sections, crop="fov", fov_um=112, pitch_um=100)
    assert (settled["fov_um"], settled["pitch_um"]) == (112, 100)


def test_a_bank_keeps_its_geometry():
    there = {"crop": "fov", "fov_um": 112.0, "spot_um": 55.0, "pitch_um": 100.0}
    expect_geometry("B", there, crop="fov", fov_um=112.5, pitch_um=None)
    with pytest.raises(BankError, match="--fov-um 150 asked; the bank B was built with fov_um 112"):
        expect_geometry("B", there, crop=None, fov_um=150.0)
    with pytest.raises(BankError, match="--crop fov asked; the bank B was built with --crop stem"):
        expect_geometry("B", STEM, crop="fov")
    with pytest.raises(BankError, match="native resolution"):
        expect_geometry("B", STEM, crop=None, fov_um=112.0)


def test_a_crop_that_is_unknown_or_has_a_field_of_view_is_refused():
    with pytest.raises(UsageError, match="unknown crop"):
        expect_crop("square", None)
    with pytest.raises(UsageError, match="both say how large"):
        expect_crop("stem", 112.0)
