"""Slides that cannot be used: one message, a remedy and exit code 1, from `embed` and `retrieve` alike."""

import json

import numpy as np
import pytest
import tifffile

FIXTURES = "wsi/openslide_fixtures"


@pytest.fixture(params=["embed", "retrieve"])
def query(request, generag, built_bank, tmp_path):
    def run(slide, *options):
        out = tmp_path / "out"
        done = generag(request.param, slide, "--backbone", "stain", "--bank", built_bank, "--out", out, "-q", *options)
        left = list(out.glob("*"))  # nothing, where the options themselves cannot be right
        assert all(p.name.endswith(".status.json") for p in left)
        for said in (json.loads(p.read_text()) for p in left):
            assert (said["state"], f"error: {said['reason']}") == ("failed", done.err.partition("\n")[0])
        return done

    return run


def write_slide(path, image, mpp=1.2):
    resolution = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"} if mpp else {}
    tifffile.imwrite(path, image, tile=(256, 256), photometric="rgb", metadata=None, **resolution)
    return path


def white(side=1024):
    return np.full((side, side, 3), 250, np.uint8)


def test_a_missing_slide(query):
    query("nowhere.svs").expect_refusal(1, "nowhere.svs: no such slide", "Check the path")


@pytest.mark.real
def test_a_tiff_that_nobody_can_decode(query, shared_data):
    query(shared_data / FIXTURES / "unopenable.tiff").expect_refusal(1, "unopenable.tiff", "cannot decode", "convert")


@pytest.mark.real
def test_a_picture_is_no_slide(query, shared_data):
    query(shared_data / FIXTURES / "boxes.png").expect_refusal(1, "boxes.png", "--mpp")


def test_text_is_no_slide(query, tmp_path):
    (tmp_path / "notes.txt").write_text("no pixels here")
    query(tmp_path / "notes.txt").expect_refusal(1, "not a slide", "SVS")


@pytest.mark.real
def test_an_absurd_pixel_size(query, shared_data):
    query(shared_data / FIXTURES / "boxes.tiff").expect_refusal(1, "boxes.tiff", "352.778", "0.05 to 5", "--mpp")


def test_a_missing_pixel_size(query, tmp_path):
    path = write_slide(tmp_path / "bare.tif", white(), mpp=None)
    query(path).expect_refusal(1, "bare.tif", "no usable pixel size", "--mpp")


@pytest.mark.parametrize("mpp", ["999", "0", "-1"])
def test_an_absurd_pixel_size_that_was_given(query, slide, mpp):
    query(slide, "--mpp", mpp).expect_refusal(2, f"pixel size {mpp} um/px was given", "0.25")


@pytest.mark.real
def test_a_slide_smaller_than_a_tile(query, shared_data):
    small = query(shared_data / FIXTURES / "small.svs", "--mpp", "0.5")
    small.expect_refusal(1, "16 x 16 px is smaller than one tile of 200 um", "--mpp")


def test_spots_outside_the_slide(query, slide, tmp_path):
    (tmp_path / "s.csv").write_text("name,x,y\na,100,100\nb,99999,5\n")
    query(slide, "--spots", tmp_path / "s.csv").expect_refusal(1, "1 of 2 spots lie outside", "b at x 99999", "level-0")


def test_spot_names_given_twice(query, slide, tmp_path):
    (tmp_path / "s.csv").write_text("name,x,y\na,100,100\na,200,200\n")
    query(slide, "--spots", tmp_path / "s.csv").expect_refusal(1, "not unique: a", "a name of its own")


@pytest.mark.parametrize(
    ("text", "said"),
    [("name,x,y\n", "no spot in the file"), ("name,left,y\na,1,2\n", "no column x"), ("name,x,y\na,1\n", "line 2")],
)
def test_a_spots_file_that_is_none(query, slide, tmp_path, text, said):
    (tmp_path / "s.csv").write_text(text)
    query(slide, "--spots", tmp_path / "s.csv").expect_refusal(2, said, "name,x,y")


@pytest.mark.parametrize("option", ["--fov-um", "--pitch-um"])
@pytest.mark.parametrize("length", ["0", "-3", "nan"])
def test_lengths_are_above_zero(query, slide, option, length):
    query(slide, option, length).expect_refusal(2, f"{option} {length} asked")
