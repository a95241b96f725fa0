import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from genrag_cli.cohorts.slide_beside import describe_preview, find_images


@pytest.fixture(scope="module")
def write():
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("write_space_ranger.py"))))


@pytest.fixture
def home(tmp_path):
    folder = tmp_path / "P1"
    (folder / "outs" / "spatial").mkdir(parents=True)
    return folder


def put(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


@pytest.mark.parametrize(
    "place",
    [
        "P1/scan.TIF", "P1/outs/scan.svs", "P1/image/a.ndpi", "P1/images/a.jpg", "P1/outs/images/a.png", "P1.btf",
        "P1.ome.tif", "images/P1.jpeg", "image/P1.SVS",
    ],
)  # fmt: skip
def test_one_image_in_any_of_the_places_is_found(home, place):
    image = put(home.parent / place)
    assert find_images((home / "outs", home), home, "P1") == [image]


@pytest.mark.parametrize(
    "place",
    [
        "P1/outs/spatial/a.tif", "P2.tif", "images/P2.tif", "P1/notes.txt", "P1/.hidden.tif", "P1/deep/er/a.tif",
        "P1/outs/cytassist_image.tiff", "P1/lib_tissue_hires_image.png", "P1_crop.tif",
    ],
)  # fmt: skip
def test_other_files_are_no_slide_of_this_section(home, place):
    put(home.parent / place)
    assert find_images((home / "outs", home), home, "P1") == []


def test_several_images_are_all_named_and_links_count_once(home):
    first, second = put(home / "a.tif"), put(home.parent / "P1.tif")
    (home / "outs" / "again.tif").symlink_to(first)
    found = find_images((home / "outs", home), home, "P1")
    assert len(found) == 2
    assert {path.resolve() for path in found} == {first.resolve(), second.resolve()}


def test_a_preview_is_blank_or_too_coarse_or_damaged_or_absent(write, tmp_path):
    path = tmp_path / "spatial" / "tissue_hires_image.png"
    assert describe_preview(path) == "no spatial/tissue_hires_image.png either"
    assert "is blank (one colour) and unusable" in describe_preview(write.write_preview(path, blank=True))
    assert describe_preview(write.write_preview(path)) == "spatial/tissue_hires_image.png is too coarse to embed"
    path.write_bytes(path.read_bytes()[:40])
    assert "cannot be read" in describe_preview(path)
