import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrag_cli.cohorts.spot_positions import HEXAGONAL, SQUARE, fit_pitch, read_positions
from genrag_cli.errors import CohortError

ROWS = [("AAA-1", 1, 0, 2, 700, 300), ("CCC-1", 0, 1, 3, 820, 369), ("GGG-1", 1, 2, 2, 939, 300)]


@pytest.fixture(scope="module")
def write():
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("write_space_ranger.py"))))


@pytest.mark.parametrize("style", ["1", "2", "header in list", "packed", "parquet"])
def test_every_form_of_the_list_gives_the_same(write, tmp_path, style):
    positions = read_positions(write.write_positions(tmp_path, ROWS, style))
    assert positions.barcodes.tolist() == ["AAA-1", "CCC-1", "GGG-1"]
    assert positions.in_tissue.tolist() == [True, False, True]
    assert positions.array_rc.tolist() == [[0, 2], [1, 3], [2, 2]]
    assert positions.xy.tolist() == [[300, 700], [369, 820], [300, 939]]


def test_columns_go_by_their_names_where_there_are_names(write, tmp_path):
    path = write.write_positions(tmp_path, [row[::-1] for row in ROWS], "2")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([",".join(write.COLUMNS[::-1]), *lines[1:]]))
    assert read_positions(path).xy.tolist() == [[300, 700], [369, 820], [300, 939]]


def test_a_byte_order_mark_quotes_and_other_columns_do_no_harm(tmp_path):
    header = '"","barcode","in_tissue","array_row","array_col","pxl_row_in_fullres","pxl_col_in_fullres"'
    (tmp_path / "tissue_positions.csv").write_text(f'\ufeff{header}\r\n"1","AAA-1",1,0,2,700.5,300\r\n', "utf-8")
    assert read_positions(tmp_path / "tissue_positions.csv").xy.tolist() == [[300, 700.5]]


def test_barcodes_of_digits_stay_text(tmp_path):
    (tmp_path / "tissue_positions_list.csv").write_text("001,1,0,2,700,300\n002,1,0,2,700,300\n")
    assert read_positions(tmp_path / "tissue_positions_list.csv").barcodes.tolist() == ["001", "002"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot be read"),
        ("AAA-1,1,0,2,700\n", "5 columns instead of 6"),
        ("AAA-1,1,0,2,700,300,9\n", "7 columns instead of 6"),
        ("AAA-1,1,0,2,700,300\nCCC-1,1,0,2,700,300,9\n", "cannot be read"),
        ("AAA-1,1,0,2,700,x\n", "column pxl_col_in_fullres holds text"),
        ("AAA-1,1,0,2,,300\n", "column pxl_row_in_fullres holds text or gaps"),
        ("AAA-1,1,0,2,nan,300\n", "column pxl_row_in_fullres holds text or gaps"),
        ("AAA-1,2,0,2,700,300\n", "in_tissue holds values other than 0 and 1"),
        ("barcode,in_tissue,array_row,array_col,x,y\nAAA-1,1,0,2,7,3\n", "no column pxl_row_in_fullres, pxl_col"),
        ("barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres\nA,1,2,3,4,5,\n", "tissue_pos"),
    ],
)
def test_a_list_that_lies_about_its_columns_is_refused_by_name(tmp_path, text, said):
    path = tmp_path / "tissue_positions_list.csv"
    path.write_text(text)
    with pytest.raises(CohortError, match=rf"tissue_positions_list\.csv.*{said}|{said}.*"):
        read_positions(path)


def test_a_damaged_parquet_file_is_refused_by_name(write, tmp_path):
    path = write.write_positions(tmp_path, ROWS, "parquet")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(CohortError, match=r"tissue_positions\.parquet: cannot be read"):
        read_positions(path)


@given(
    st.floats(20, 400), st.floats(0, 6.3), st.integers(3, 60), st.sampled_from([HEXAGONAL, SQUARE]), st.integers(0, 9)
)
@settings(max_examples=60, deadline=None)
def test_a_few_spots_of_a_turned_array_give_its_pitch(pitch, angle, n, neighbours, seed):
    rng = np.random.default_rng(seed)
    rc = np.array([(r, c) for r in range(78) for c in range(128) if neighbours is SQUARE or (r + c) % 2 == 0])
    scale = np.array([0.5, np.sqrt(3) / 2]) if neighbours is HEXAGONAL else np.ones(2)
    x, y = (rc[:, ::-1] * scale * pitch).T
    xy = np.stack([x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)], axis=1) + 5000
    some = np.concatenate([[0, 40, len(rc) - 9], rng.permutation(len(rc))[:n]])
    found = fit_pitch(rc[some], np.round(xy[some]), neighbours)
    assert found == pytest.approx(pitch, rel=0.01)


def test_positions_that_follow_no_array_have_no_pitch(write):
    rc, yx = write.hexagonal_array()
    xy = yx[:, ::-1]
    assert fit_pitch(rc, xy, HEXAGONAL) == pytest.approx(138)
    assert fit_pitch(rc, np.random.default_rng(0).permutation(xy), HEXAGONAL) is None
    assert fit_pitch(rc[:2], xy[:2], HEXAGONAL) is None
    assert fit_pitch(rc[rc[:, 0] == 0], xy[rc[:, 0] == 0], HEXAGONAL) is None
    assert fit_pitch(rc * 0, xy, HEXAGONAL) is None
    assert fit_pitch(rc, xy * 0, HEXAGONAL) is None
    assert fit_pitch(rc, xy, SQUARE) is None
