from io import BytesIO

import numpy as np
from PIL import Image

from genrag_cli.slides.dicom import is_dicom, is_undone_ycbcr, series_uid


def frame_of(pixels):
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "jpeg", quality=95)
    return buffer.getvalue() + b"what follows in the file"


def test_luma_and_chroma_taken_for_colours_are_recognised(section):
    pixels = section[400:600, 500:700]
    frame = frame_of(pixels)
    decoded = Image.open(BytesIO(frame))
    assert is_undone_ycbcr(frame, np.asarray(decoded.convert("YCbCr")))
    assert not is_undone_ycbcr(frame, np.asarray(decoded))


def test_a_frame_that_matches_neither_changes_nothing(section):
    assert not is_undone_ycbcr(frame_of(section[:200, :200]), np.zeros((200, 200, 3), np.uint8))
    assert not is_undone_ycbcr(b"no jpeg", np.zeros((200, 200, 3), np.uint8))


def test_other_files_are_not_dicom(tmp_path):
    (tmp_path / "short").write_bytes(b"DICM")
    assert not is_dicom(tmp_path / "short")
    assert series_uid(tmp_path / "short") == ""


def test_the_series_is_the_files_own_and_not_one_that_it_refers_to(tmp_path):
    referred = b"\x20\x00\x0e\x00UI\x04\x001.9\0"
    own = b"\x20\x00\x0d\x00UI\x04\x001.2\0\x20\x00\x0e\x00UI\x06\x001.2.3\0"
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM" + referred + own)
    assert series_uid(tmp_path / "a.dcm") == "1.2.3"
