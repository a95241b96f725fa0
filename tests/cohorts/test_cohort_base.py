import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrag_cli.cohorts.base import Cohort, Measured, Section, assemble_measured, lattice_indices, neighbour_distance
from genrag_cli.errors import CohortError


def square(n=8, pitch=290.0, jitter=0.0, seed=0):
    rows, cols = (a.ravel() for a in np.mgrid[0:n, 0:n])
    xy = np.stack([cols, rows], axis=1) * pitch
    return xy + np.random.default_rng(seed).normal(0, jitter, xy.shape)


def hexagonal(n=8, pitch=100.0):
    rows, cols = (a.ravel() for a in np.mgrid[0:n, 0:n])
    return np.stack([(cols + (rows % 2) / 2) * pitch, rows * pitch * np.sqrt(3) / 2], axis=1)


def assemble(counts, tmp_path, **changes):
    n, n_genes = np.shape(counts)
    given_ = {
        "source": tmp_path / "a.h5ad",
        "names": [f"s{i}" for i in range(n)],
        "centres": np.zeros((n, 2)),
        "array_rc": np.zeros((n, 2)),
        "counts": np.array(counts),
        "genes": [f"g{i}" for i in range(n_genes)],
    }
    return assemble_measured(**(given_ | changes))


@given(st.floats(0.5, 1e4), st.integers(2, 9))
def test_pitch_of_an_exact_lattice_is_its_spacing(pitch, n):
    assert neighbour_distance(square(n, pitch)) == pytest.approx(pitch)
    assert neighbour_distance(hexagonal(n, pitch)) == pytest.approx(pitch)


def test_jitter_does_not_bias_the_pitch_as_it_biases_the_nearest_neighbour():
    from scipy.spatial import cKDTree

    centres = square(20, 290.0, jitter=12.0)
    nearest = np.median(cKDTree(centres).query(centres, k=2)[0][:, 1])
    assert nearest < 280
    assert neighbour_distance(centres) == pytest.approx(290, rel=0.01)


def test_holes_and_a_stray_spot_do_not_move_the_pitch():
    centres = square(12)[np.random.default_rng(1).random(144) > 0.3]
    assert neighbour_distance(np.vstack([centres, [[9e4, 9e4]]])) == pytest.approx(290)


@pytest.mark.parametrize("centres", [np.zeros((1, 2)), np.full((4, 2), np.nan), np.zeros((5, 2))])
def test_spots_without_distinct_places_have_no_pitch(centres):
    with pytest.raises(CohortError, match="spots"):
        neighbour_distance(centres)


def test_indices_from_coordinates_are_row_then_column():
    assert lattice_indices(np.array([[50.0, 30], [250, 30], [50, 430], [50, 230]])).tolist() == [
        [0, 0],
        [0, 1],
        [2, 0],
        [1, 0],
    ]


def test_whole_counts_become_int32_and_totals_are_row_sums(tmp_path):
    measured = assemble([[1.0, 0, 2], [0, 0, 0]], tmp_path)
    assert measured.counts.dtype == np.int32
    assert measured.total_counts.tolist() == [3, 0]
    assert measured.notes == ("1 of 2 spots of a.h5ad hold no counts",)


def test_fractions_stay_float32_and_are_said(tmp_path):
    measured = assemble([[1.5, 0], [0, 2]], tmp_path)
    assert measured.counts.dtype == np.float32
    assert "whole numbers" in measured.notes[0]


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_values_that_cannot_be_counts_are_refused(bad, tmp_path):
    with pytest.raises(CohortError, match=r"a\.h5ad: negative or non-finite"):
        assemble([[1, bad], [0, 2]], tmp_path)


def test_a_table_without_spots_or_genes_is_refused(tmp_path):
    with pytest.raises(CohortError, match="0 spots and 3 genes"):
        assemble(np.zeros((0, 3)), tmp_path)
    with pytest.raises(CohortError, match="2 spots and 0 genes"):
        assemble(np.zeros((2, 0)), tmp_path)


def test_repeated_spot_names_are_refused(tmp_path):
    with pytest.raises(CohortError, match=r"1 spot name\(s\) occur more than once"):
        assemble([[1, 0], [0, 2]], tmp_path, names=["a", "a"])


def test_columns_of_one_name_are_summed_and_keep_the_first_id(tmp_path):
    measured = assemble([[1, 5, 2], [0, 0, 4]], tmp_path, genes=["g", "h", "g"], gene_ids=["E1", "E2", "E3"])
    assert measured.genes.tolist() == ["g", "h"]
    assert measured.gene_ids.tolist() == ["E1", "E2"]
    assert measured.counts.toarray().tolist() == [[3, 5], [4, 0]]
    assert measured.n_repeated == 1
    assert "summed" in measured.notes[0]


def test_shapes_that_do_not_fit_are_refused(tmp_path):
    from scipy import sparse

    names, genes = np.array(["a", "b"]), np.array(["g"])
    with pytest.raises(CohortError, match=r"centres: expected shape \(2, 2\), found \(1, 2\)"):
        Measured(names, np.zeros((1, 2)), np.zeros((2, 2), int), sparse.csr_matrix((2, 1)), genes, None, np.zeros(2))


def test_a_mistyped_section_gets_the_nearest_name(tmp_path):
    known = Section("SPA148", None, None, tmp_path, reader=None)
    cohort = Cohort(tmp_path, "hest", (), (("X", "no positions"),), (), (known,))
    assert cohort.section("SPA148") is known
    with pytest.raises(CohortError, match="Did you mean SPA148"):
        cohort.section("SPA184")
    with pytest.raises(CohortError, match="no positions"):
        cohort.section("X")
