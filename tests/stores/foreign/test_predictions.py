"""Predictions made elsewhere: genes, scales, samples, generag's own."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrag_cli.errors import FeaturesError
from genrag_cli.stores.foreign import join_rows, read_predictions

make = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("write_foreign.py"))))
TRUTH = make.make_truth(seed=1)
SHUFFLED = TRUTH.rows(np.random.default_rng(9).permutation(len(TRUTH.names)))


@pytest.fixture
def beside(tmp_path):
    """Names and genes of the shuffled rows, one a line."""
    names, genes = tmp_path / "names.txt", tmp_path / "selected_core_list.txt"
    names.write_text("\n".join(SHUFFLED.names) + "\n")
    genes.write_text("\n".join(SHUFFLED.genes) + "\n")
    return {"names_from": names, "genes_from": genes}


def check(rows):
    assert rows.columns.tolist() == TRUTH.genes.tolist()
    found = rows.values[join_rows(rows, TRUTH.names, TRUTH.centres, within_px=2)]
    assert found.tobytes() == TRUTH.values.tobytes()


def frame_of_genes():
    import pandas as pd

    return pd.DataFrame(SHUFFLED.values, columns=SHUFFLED.genes, index=SHUFFLED.names)


def h5ad(folder, **parts):
    data = make.annotated(SHUFFLED, **parts)
    data.write_h5ad(folder / "P.h5ad")
    return folder / "P.h5ad"


def with_genes(t):
    import pandas as pd

    return {"X": t.values, "var": pd.DataFrame(index=pd.Index(t.genes.tolist(), dtype=object))}


@pytest.mark.parametrize(
    "write",
    [
        lambda f: h5ad(f, **with_genes(SHUFFLED)),
        lambda f: h5ad(f, X=None, obsm={"pred": frame_of_genes()}),
        lambda f: h5ad(f, X=None, obsm={"pred": SHUFFLED.values}, uns={"pred_genes": SHUFFLED.genes.astype(object)}),
        lambda f: make.csv(f, SHUFFLED),
        lambda f: make.csv_index(f, SHUFFLED),
        lambda f: make.parquet(f, SHUFFLED),
        lambda f: make.parquet_index(f, SHUFFLED),
    ],
    ids=["X", "obsm-frame", "obsm-array", "csv", "csv-index", "parquet", "parquet-index"],
)
def test_predictions_that_name_their_genes(write, tmp_path):
    check(read_predictions(write(tmp_path)))


def test_npz_names_its_genes_and_states_its_scale(tmp_path):
    path = tmp_path / "P.npz"
    np.savez(path, predictions=SHUFFLED.values, names=SHUFFLED.names, genes=SHUFFLED.genes, scale="log1p_cp10k")
    rows = read_predictions(path)
    check(rows)
    assert (rows.kind, rows.scale) == ("npz", "log1p_cp10k")


@pytest.mark.parametrize("singleton", [False, True])
def test_published_samples_are_averaged_spot_by_spot(singleton, tmp_path, beside):
    rng = np.random.default_rng(3)
    samples = rng.normal(size=(len(SHUFFLED.names), make.SAMPLES, 6)).astype(np.float32)
    flat = samples.reshape(-1, 1, 6) if singleton else samples.reshape(-1, 6)
    path = make.save_tensor(tmp_path / "generated_samples_lr_Stem_core_20sample.pt", flat)
    rows = read_predictions(path, **beside)
    expected = np.stack([s.astype(np.float64).sum(axis=0) / 20 for s in samples]).astype(np.float32)
    np.testing.assert_array_equal(rows.values, expected)
    assert rows.names.tolist() == SHUFFLED.names.tolist()
    assert rows.kind == "generag-pt"
    assert any("averaged over 20 samples" in n for n in rows.notes)


def test_equal_samples_give_the_values_to_the_last_bit(tmp_path, beside):
    path = make.save_tensor(tmp_path / "x_20sample.pt", np.repeat(SHUFFLED.values, 20, axis=0))
    check(read_predictions(path, **beside))


def test_a_tensor_without_samples_in_its_name_has_one_row_per_spot(tmp_path, beside):
    check(read_predictions(make.save_tensor(tmp_path / "predicted.pt", SHUFFLED.values), **beside))


def test_samples_that_the_name_does_not_say_are_refused(tmp_path, beside):
    path = make.save_tensor(tmp_path / "predicted.pt", np.repeat(SHUFFLED.values, 20, axis=0))
    with pytest.raises(FeaturesError, match=r"12 names, .* has 240 rows") as caught:
        read_predictions(path, **beside)
    assert "20 rows a name" in caught.value.hint


def test_rows_that_are_no_multiple_of_the_samples_are_refused(tmp_path, beside):
    path = make.save_tensor(tmp_path / "x_20sample.pt", np.ones((239, 6), np.float32))
    with pytest.raises(FeaturesError, match="239 rows are not 20 samples of each spot"):
        read_predictions(path, **beside)


def test_columns_that_nothing_names_are_refused(tmp_path, beside):
    path = make.save_tensor(tmp_path / "predicted.pt", SHUFFLED.values)
    with pytest.raises(FeaturesError, match="nothing names its 6 columns") as caught:
        read_predictions(path, names_from=beside["names_from"])
    assert "--genes-from" in caught.value.hint


def test_genes_are_never_cut_to_the_columns(tmp_path, beside):
    beside["genes_from"].write_text("\n".join([*SHUFFLED.genes, "ONE_MORE"]))
    path = make.save_tensor(tmp_path / "predicted.pt", SHUFFLED.values)
    with pytest.raises(FeaturesError, match=r"has 7 genes, .* has 6 columns"):
        read_predictions(path, **beside)


def test_names_and_genes_that_contradict_the_file_are_refused(tmp_path, beside):
    path = make.csv(tmp_path, SHUFFLED)
    check(read_predictions(path, **beside))
    for option, said in (("genes_from", "names its genes itself"), ("names_from", "names its rows itself")):
        lines = beside[option].read_text().split()
        other = tmp_path / "other.txt"
        other.write_text("\n".join(reversed(lines)))
        with pytest.raises(FeaturesError, match=said):
            read_predictions(path, **{option: other})


def test_counts_beside_predictions_leave_a_choice_that_is_not_made(tmp_path):
    path = h5ad(tmp_path, **with_genes(TRUTH), obsm={"pred": frame_of_genes()})
    with pytest.raises(FeaturesError, match=r"several X and obsm.*X \(12, 6\), pred \(12, 6\)"):
        read_predictions(path)
    check(read_predictions(path, key="pred"))
    check(read_predictions(path, key="obsm/pred"))
    with pytest.raises(FeaturesError, match="no 'prde' among its X and obsm") as caught:
        read_predictions(path, key="prde")
    assert "pred" in caught.value.hint


def test_the_log_that_scanpy_notes_is_passed_on_and_not_taken_for_a_scale(tmp_path):
    rows = read_predictions(h5ad(tmp_path, **with_genes(SHUFFLED), uns={"log1p": {"base": None}, "encoder": "stem"}))
    assert (rows.scale, rows.encoder) == ("", "stem")
    assert rows.notes == ("uns['log1p'] is set: X was log-transformed",)
    assert read_predictions(h5ad(tmp_path, **with_genes(SHUFFLED), uns={"scale": "counts"})).scale == "counts"


def own_prediction(t, **more):
    """As `generag retrieve` lays it out, under the keys that its outputs declare."""
    from scipy import sparse

    from genrag_cli.outputs import keys

    uns = {
        keys.SPATIAL: {"S": {"metadata": {"slide": "S", "mpp": 0.5}, "scalefactors": {}}},
        keys.ABOUT: {"unit": "log1p_cp10k", "key": "k"},
        keys.ANCHORS: t.genes[:2].astype(object),
    }
    weights = sparse.csr_matrix(np.eye(len(t.names), 30, dtype=np.float32))
    obsm = {keys.WEIGHTS: weights, keys.Y_INIT: t.values[:, :2]}
    return {**with_genes(t), "obsm": obsm, "uns": uns, **more}


def test_generags_own_predictions_are_read_with_unit_and_pixel_size(tmp_path):
    path = h5ad(tmp_path, **own_prediction(SHUFFLED))
    rows = read_predictions(path)
    check(rows)
    assert (rows.kind, rows.scale, rows.mpp) == ("generag", "log1p_cp10k", 0.5)
    first = read_predictions(path, key="generag_y_init")
    assert first.columns.tolist() == TRUTH.genes[:2].tolist()
    np.testing.assert_array_equal(first.values, SHUFFLED.values[:, :2])


def test_genes_that_hold_fillers_are_left_out_and_said(tmp_path):
    present = np.ones(SHUFFLED.values.shape, np.bool_)
    present[4, 1] = False
    rows = read_predictions(h5ad(tmp_path, **own_prediction(SHUFFLED, layers={"generag_present": present})))
    assert rows.columns.tolist() == [g for g in TRUTH.genes.tolist() if g != "GENE1"]
    np.testing.assert_array_equal(rows.values, np.delete(SHUFFLED.values, 1, axis=1))
    assert any("left out: GENE1" in n for n in rows.notes)


def test_coordinates_in_text_keep_every_bit_of_float64(tmp_path):
    centres = np.random.default_rng(6).uniform(0, 1e5, (500, 2))
    t = make.Truth(np.arange(500).astype(str)[::-1], centres, np.ones((500, 1), np.float32), np.array(["g"]))
    assert np.array_equal(read_predictions(make.csv(tmp_path, t)).centres, centres)


def test_embeddings_of_a_tile_file_are_no_predictions(tmp_path):
    with pytest.raises(FeaturesError, match="nothing names its 6 columns"):
        read_predictions(make.trident(tmp_path, TRUTH))


@settings(max_examples=25)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=4, max_size=4), st.booleans())
def test_text_and_npz_keep_every_bit_of_float32(tmp_path_factory, numbers, table):
    values = np.array(numbers, np.float32).reshape(2, 2)
    t = make.Truth(np.array(["a", "b"]), np.array([[0.0, 0], [9, 9]]), values, np.array(["g", "h"]))
    folder = tmp_path_factory.mktemp("bits")
    if table:
        path = make.csv(folder, t)
    else:
        path = folder / "P.npz"
        np.savez(path, X=values, names=t.names, genes=t.genes)
    assert np.array_equal(read_predictions(path).values, values)
