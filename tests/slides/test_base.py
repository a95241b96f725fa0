import numpy as np
import pytest

from genrag_cli.errors import SlideError
from genrag_cli.slides.base import composite_on_white, content_digest, crop_on_white, mean_pixel_size


def test_transparent_pixels_become_white_and_opaque_ones_stay():
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 100, 255, 128]]], np.uint8)
    assert composite_on_white(rgba).tolist() == [[[10, 20, 30], [255, 255, 255], [127, 177, 255]]]


def test_crop_is_white_where_it_reaches_past_the_image():
    pixels = np.zeros((4, 5, 3), np.uint8)
    crop = crop_on_white(pixels, -1, 2, 7, 3)
    assert (crop[:2, 1:6] == 0).all()
    assert crop.sum() == 255 * 3 * (7 * 3 - 10)


def test_digest_ignores_names_and_sees_both_ends(tmp_path):
    body = np.random.default_rng(0).integers(0, 255, 3_000_000, dtype=np.uint8)
    for name, at in (("a", None), ("b", None), ("head", 5), ("tail", -5)):
        changed = body.copy()
        if at is not None:
            changed[at] ^= 1
        (tmp_path / name).write_bytes(changed.tobytes())
    a, b, head, tail = (content_digest([tmp_path / name]) for name in ("a", "b", "head", "tail"))
    assert a == b
    assert len({a, head, tail}) == 3


def test_digest_of_several_files_does_not_depend_on_their_order(tmp_path):
    files = [tmp_path / name for name in "xyz"]
    for file in files:
        file.write_text(file.name)
    assert content_digest(files) == content_digest(files[::-1])
    assert content_digest(files) != content_digest(files[:2])


def test_pixels_that_are_not_square_are_refused(tmp_path):
    assert mean_pixel_size(tmp_path, "tag", 0.5, 0.51)[1] == pytest.approx(0.505, abs=1e-4)
    with pytest.raises(SlideError, match="not square"):
        mean_pixel_size(tmp_path, "tag", 0.5, 1.0)
