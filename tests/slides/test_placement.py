import numpy as np
import pytest
from PIL import Image

from genrag_cli.cohorts import open_cohort
from genrag_cli.slides import open_slide
from genrag_cli.slides.placement import darkness_under_spots
from genrag_cli.types import PixelSize


@pytest.fixture
def slide(tmp_path):
    """2000 px at 1 um: a dark square in the upper left quarter, noise everywhere."""
    image = np.random.default_rng(0).integers(200, 250, (2000, 2000, 3), dtype=np.uint8)
    image[200:900, 200:900] -= 90
    Image.fromarray(image).save(tmp_path / "s.png")
    with open_slide(tmp_path / "s.png", pictures=True) as opened:
        yield opened


ON = np.stack(np.meshgrid(np.arange(300, 850, 100), np.arange(300, 850, 100)), -1).reshape(-1, 2).astype(float)
SIZE = PixelSize(1.0, "test")


def test_spots_on_tissue_are_darker_and_shifted_ones_are_not(slide):
    assert darkness_under_spots(slide, SIZE, ON, 100.0) > 0.98
    assert darkness_under_spots(slide, SIZE, ON + 1000, 100.0) < 0.6


def test_spots_anyhow_are_as_dark_as_anything(slide):
    anyhow = np.random.default_rng(1).uniform(100, 1900, (60, 2))
    assert 0.35 < darkness_under_spots(slide, SIZE, anyhow, 100.0) < 0.7


def test_nothing_is_said_where_spots_leave_nothing_to_compare_with(slide):
    everywhere = np.stack(np.meshgrid(np.arange(0, 2000, 50), np.arange(0, 2000, 50)), -1).reshape(-1, 2).astype(float)
    assert darkness_under_spots(slide, SIZE, everywhere, 100.0) is None
    assert darkness_under_spots(slide, SIZE, np.array([[-5.0, 3.0], [9999.0, 3.0]]), 100.0) is None


@pytest.mark.real
@pytest.mark.parametrize("name", ["B4", "C3", "C5"])
def test_spots_of_real_sections_lie_on_tissue_and_mirrored_ones_do_not(name, shared_data):
    section = open_cohort(shared_data / "her2st").section(name)
    measured = section.load()
    size = PixelSize(200 / measured.pitch_px, "spot pitch")
    with open_slide(section.slide, pictures=True) as opened:
        right = darkness_under_spots(opened, size, measured.centres, 100.0)
        swapped = darkness_under_spots(opened, size, measured.centres[:, ::-1], 100.0)
    assert right > 0.98
    assert swapped < right - 0.03
