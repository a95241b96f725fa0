import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from genrag_cli.cohorts.base import Reading
from genrag_cli.cohorts.space_ranger import read_cohort
from genrag_cli.errors import CohortError

VISIUM = Path("P1/outs")
POSITIONS = VISIUM / "spatial" / "tissue_positions.csv"
H5 = VISIUM / "filtered_feature_bc_matrix.h5"
SLOW = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def write():
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("write_space_ranger.py"))))


def load(root, reading=Reading()):  # noqa: B008 - frozen
    return read_cohort(root, reading).sections[0].load()


def test_spots_in_tissue_are_joined_by_barcode_in_the_order_of_the_matrix(write, tmp_path):
    measured = load(write.write_visium(tmp_path))
    rc, yx = write.hexagonal_array()
    assert measured.names.tolist() == [write.barcode_of(i) for i in range(35, 3, -1)]
    assert measured.array_rc.tolist() == rc[35:3:-1].tolist()
    np.testing.assert_allclose(measured.centres, yx[35:3:-1, ::-1], atol=0.5)
    assert len(measured.notes) == 2  # the antibody and the symbol that repeats
    assert measured.pitch_px == pytest.approx(138, rel=0.005)


def test_symbols_that_repeat_are_summed_and_antibodies_left_out(write, tmp_path):
    measured = load(write.write_visium(tmp_path))
    written = np.random.default_rng(0).poisson(1, (36, 5))[35:3:-1]
    assert measured.genes.tolist() == ["ACTB", "ERBB2", "KRT19"]
    assert measured.gene_ids.tolist() == ["ENSG01", "ENSG02", "ENSG04"]
    np.testing.assert_array_equal(measured.counts[:, 0].toarray().ravel(), written[:, 0] + written[:, 2])
    assert measured.n_repeated == 1
    assert any("1 Antibody Capture" in note for note in measured.notes)


@pytest.mark.parametrize("matrix", ["h5", "mtx", "mtx plain"])
@pytest.mark.parametrize("style", ["1", "2", "header in list", "packed", "parquet"])
def test_every_release_gives_the_same_section(write, tmp_path, style, matrix):
    measured = load(write.write_visium(tmp_path / "a", style=style, matrix=matrix))
    usual = load(write.write_visium(tmp_path / "b"))
    assert measured.names.tolist() == usual.names.tolist()
    np.testing.assert_array_equal(measured.centres, usual.centres)
    assert (measured.counts != usual.counts).nnz == 0


def test_of_a_raw_matrix_only_spots_in_tissue_are_taken(write, tmp_path):
    measured = load(write.write_visium(tmp_path, kind="raw"))
    assert measured.names.tolist() == [write.barcode_of(i) for i in range(4, 36)]
    assert "4 of 36 barcodes of raw_feature_bc_matrix.h5 are not in tissue and left out" in measured.notes


@given(st.permutations(range(8)), st.integers(1, 8), st.integers(0, 8), st.sampled_from(["h5", "mtx"]))
@SLOW
def test_shuffled_and_missing_spots_are_joined_by_name(tmp_path_factory, write, order, n_counts, n_places, matrix):
    folder = tmp_path_factory.mktemp("s")
    write.write_visium(folder, style="1", image=True)
    (folder / H5).unlink()
    barcodes = [write.barcode_of(i) for i in range(10, 18)]
    listed, placed = [barcodes[i] for i in order][:n_counts], set(barcodes[: n_places or 8])
    counts = np.array([[barcodes.index(b) + 1] + [0] * 4 for b in listed])
    writer, target = (write.write_h5, H5) if matrix == "h5" else (write.write_mtx, H5.with_suffix(""))
    writer(folder / target, counts, listed)
    path = folder / VISIUM / "spatial" / "tissue_positions_list.csv"
    rows = path.read_text().splitlines()
    path.write_text("\n".join(r for r in rows[::-1] if r.split(",")[0] in placed or int(r.split(",")[2]) > 2))
    kept = [b for b in listed if any(r.startswith(b) for r in path.read_text().splitlines())]
    if not kept:
        with pytest.raises(CohortError, match="in common"):
            load(folder)
        return
    measured = load(folder)
    assert measured.names.tolist() == kept
    assert measured.counts[:, 0].toarray().ravel().tolist() == [barcodes.index(b) + 1 for b in kept]
    where = {r.split(",")[0]: [float(v) for v in r.split(",")[:3:-1]] for r in rows}
    assert measured.centres.tolist() == [where[b] for b in kept]


def test_three_spots_far_apart_give_the_pitch_of_the_whole_array(write, tmp_path):
    root = write.write_visium(tmp_path)
    names = [write.barcode_of(i) for i in (4, 15, 33)]
    write.write_h5(root / H5, np.ones((3, 5), np.int32), names)
    measured = load(root)
    assert measured.pitch_px == pytest.approx(138, rel=0.005)
    assert "29 of 32 positions in tissue have no counts in filtered_feature_bc_matrix.h5" in measured.notes


def test_indices_that_do_not_fit_the_pixels_are_said_and_not_used(write, tmp_path):
    root = write.write_visium(tmp_path)
    header, *rows = (root / POSITIONS).read_text().splitlines()
    cells = [row.split(",") for row in rows]
    rows = [
        ",".join([*cell[:2], *other[2:4], *cell[4:]]) for cell, other in zip(cells, cells[7:] + cells, strict=False)
    ]
    (root / POSITIONS).write_text("\n".join([header, *rows]))
    measured = load(root)
    assert any("do not follow the array's indices" in note for note in measured.notes)
    assert measured.pitch_px == pytest.approx(138, rel=0.01)


@pytest.mark.parametrize("cut", ["positions", "counts"])
def test_barcodes_that_differ_in_their_suffix_are_joined_and_said(write, tmp_path, cut):
    root = write.write_visium(tmp_path)
    if cut == "positions":
        (root / POSITIONS).write_text((root / POSITIONS).read_text().replace("-1,", ","))
    else:
        write.write_h5(root / H5, np.ones((2, 5), np.int32), [write.barcode_of(i)[:-2] for i in (9, 8)])
    measured = load(root)
    assert measured.array_rc[-1].tolist() == write.hexagonal_array()[0][8 if cut == "counts" else 4].tolist()
    assert "without the number behind the dash" in measured.notes[0]


def test_a_matrix_of_another_run_is_refused_with_both_sides(write, tmp_path):
    root = write.write_visium(tmp_path)
    write.write_h5(root / H5, np.ones((2, 5), np.int32), ["TTT-1", "TTG-1"])
    with pytest.raises(CohortError, match=r"no barcode in common: 'TTT-1' in .*'AAAAAAAA-1' in .*positions\.csv"):
        load(root)


def test_no_spot_in_tissue_is_refused(write, tmp_path):
    root = write.write_visium(tmp_path)
    (root / POSITIONS).write_text((root / POSITIONS).read_text().replace("-1,1,", "-1,0,"))
    with pytest.raises(CohortError, match=r"no barcode of .* is in tissue"):
        load(root)


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
@pytest.mark.parametrize("layout", ["visium", "hd"])
def test_values_that_are_no_counts_are_refused(write, tmp_path, value, layout):
    import h5py

    root = write.write_visium(tmp_path) if layout == "visium" else write.write_hd(tmp_path)
    path = read_cohort(root, Reading()).sections[0].counts
    with h5py.File(path, "a") as file:
        data = file["matrix/data"][:].astype(np.float64)
        del file["matrix/data"]
        data[0] = value
        file["matrix/data"] = data
    with pytest.raises(CohortError, match="negative or non-finite"):
        load(root)


def test_fractions_are_taken_and_said(write, tmp_path):
    root = write.write_visium(tmp_path)
    names = [write.barcode_of(i) for i in range(4, 36)]
    write.write_h5(root / H5, np.full((32, 5), 0.5), names, data_dtype=np.float64)
    measured = load(root)
    assert measured.counts.dtype == np.float32
    assert any("not all counts are whole numbers" in note for note in measured.notes)


@pytest.mark.parametrize("matrix", ["h5", "mtx"])
def test_bins_are_pooled_where_they_lie(write, tmp_path, matrix):
    measured = load(write.write_hd(tmp_path, matrix=matrix))
    actb = dict(zip(measured.names.tolist(), measured.counts[:, 0].toarray().ravel().tolist(), strict=True))
    # 20 x 20 bins without the first row; squares start at the second. ENSG03 repeats ACTB.
    assert "0001x0001" in actb
    assert sum(actb.values()) == measured.counts[:, 0].sum()
    assert measured.genes.tolist() == ["ACTB", "ERBB2", "KRT19"]
    assert (measured.lattice_pitch_px, measured.pitch_px) == (512, 512)
    corner = measured.centres[measured.names.tolist().index("0000x0000")]
    np.testing.assert_allclose(corner, [900 + 256, 500 + 64 + 256])


def test_empty_squares_are_absent_and_others_keep_their_place(write, tmp_path):
    measured = load(write.write_hd(tmp_path, n=24), Reading(spot_um=16 * 4))
    gap = [f"{r:04}x{c:04}" for r in (2, 3) for c in (2, 3)]
    assert set(measured.names.tolist()).isdisjoint(gap[:1])
    steps = (measured.centres - measured.centres[0]) / measured.lattice_pitch_px
    np.testing.assert_allclose(steps[:, ::-1], measured.array_rc - measured.array_rc[0], atol=1e-9)


@pytest.mark.parametrize(("bin_um", "n"), [(16, 20 * 19), (8, 40 * 39), (4, 80 * 79)])
def test_any_bin_gives_the_same_totals_up_to_its_first_row(write, tmp_path, bin_um, n):
    measured = load(write.write_hd(tmp_path, bins=(4, 8, 16), gap=False), Reading(bin_um=bin_um))
    counts = np.array(
        [[(r + c) % (g + 1) == 0 for g in (0, 2)] for r in range(1, 320 // bin_um) for c in range(320 // bin_um)]
    )
    assert measured.counts[:, 0].sum() == counts.sum()
    assert any(
        note.startswith(f"{n} bins of {bin_um} um are summed into 9 squares of 128 um") for note in measured.notes
    )


@given(st.floats(-3.2, 3.2), st.sampled_from([0.2, 0.2738, 0.5]))
@SLOW
def test_a_turned_array_is_pooled_along_the_image(tmp_path_factory, write, angle, mpp):
    measured = load(write.write_hd(tmp_path_factory.mktemp("h"), angle=angle, mpp=mpp, gap=False, n=16))
    assert measured.lattice_pitch_px == pytest.approx(128 / mpp)
    assert not any("um/px" in note for note in measured.notes)
    middle = np.array([128, 136]) / mpp
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    weight = measured.total_counts
    found = (measured.centres * weight[:, None]).sum(axis=0) / weight.sum()
    np.testing.assert_allclose(found * mpp, (turn @ middle + [900, 500]) * mpp, atol=64)


def test_a_pixel_size_that_does_not_fit_the_bins_is_said(write, tmp_path):
    measured = load(write.write_hd(tmp_path), Reading(mpp=0.3))
    assert any(
        "bins of 16 um lie 64 px apart, which is 0.25 um/px; they are pooled at 0.3" in n for n in measured.notes
    )
    assert measured.lattice_pitch_px == pytest.approx(128 / 0.3)


def test_pooling_does_not_make_the_matrix_dense(write, tmp_path):
    import tracemalloc

    from scipy import sparse

    root = write.write_hd(tmp_path, n=100, gap=False)
    names = [f"s_016um_{r:05d}_{c:05d}-1" for r in range(1, 100) for c in range(100)]
    genes = [(f"E{i}", f"G{i}", write.GENE) for i in range(20_000)]
    entries = (np.ones(100_000, np.int32), np.random.default_rng(0).integers(0, (9_900, 20_000), (100_000, 2)).T)
    counts = sparse.csr_matrix(entries, shape=(9_900, 20_000))
    write.write_h5(root / "H1/outs/binned_outputs/square_016um/filtered_feature_bc_matrix.h5", counts, names, genes)
    tracemalloc.start()
    measured = load(root)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert measured.counts.sum() == 100_000
    assert peak < 100e6  # dense it would be 792e6
