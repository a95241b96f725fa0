import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrag_cli.errors import CohortError, GeneragError
from genrag_cli.evaluation.join import join_spots, rows_of, take_truth
from genrag_cli.genes.scales import to_scale
from genrag_cli.types import COUNTS, LOG1P_CP10K, Expression, Scale

NAMES = st.lists(st.integers(0, 40).map(str), unique=True, max_size=20).map(lambda n: ["a", "b", "c", *n])


def predicted(genes, scale=COUNTS, names=("s0", "s1", "s2")):
    return Expression(np.zeros((len(names), len(genes)), np.float32), np.array(names), np.array(genes), scale)


@given(NAMES, NAMES.map(lambda n: n[::-1]))
def test_joined_rows_have_the_same_name_in_the_order_of_the_prediction(first, second):
    join = join_spots(np.array(first), np.array(second))
    shared = [name for name in first if name in second]
    assert np.array(first)[join.prediction_rows].tolist() == shared
    assert np.array(second)[join.truth_rows].tolist() == shared
    assert (join.only_predicted, join.only_measured) == (len(first) - len(shared), len(second) - len(shared))


def test_what_is_not_joined_is_said_both_ways():
    names = np.array(["a", "b", "c", "d"])
    assert join_spots(names, names[::-1]).note == ""
    note = join_spots(names, np.array(["x", "y", "c", "b", "a"])).note
    assert note == "1 predicted spots not measured, 2 measured spots not predicted"


def test_fewer_than_three_joined_spots_are_refused_with_an_example_of_each_side():
    with pytest.raises(CohortError, match=r"2 of 3 predicted and 4 measured .* predicted '0_1', measured '10x21'"):
        join_spots(np.array(["0_1", "a", "b"]), np.array(["10x21", "a", "b", "c"]))
    with pytest.raises(CohortError, match="measured none"):
        join_spots(np.array(["a", "b", "c"]), np.array([], dtype=str))


def test_names_that_repeat_cannot_be_joined():
    fine, twice = np.array(["a", "b", "c"]), np.array(["a", "b", "b", "c"])
    with pytest.raises(CohortError, match="of the prediction are not unique"):
        join_spots(twice, fine)
    with pytest.raises(CohortError, match="of the truth are not unique"):
        join_spots(fine, twice)


def test_rows_are_found_by_name_and_a_missing_spot_is_named():
    assert rows_of(predicted(["A"]), np.array(["s2", "s0"]), "y_init").tolist() == [2, 0]
    with pytest.raises(GeneragError, match="y_init lacks 1 of 2 scored spots, such as s9"):
        rows_of(predicted(["A"]), np.array(["s2", "s9"]), "y_init")


def take(prediction, wanted, counts=((1, 2, 7), (3, 4, 3), (0, 0, 0)), genes=("A", "B", "C")):
    counts = np.array(counts)
    totals = counts.sum(axis=1) * 1.0
    return take_truth(
        counts,
        np.array(genes),
        totals,
        rows=np.array([1, 0]),
        prediction=prediction,
        wanted=np.array(wanted),
        to_scale=to_scale,
    )


def test_truth_is_taken_by_name_in_the_scale_of_the_prediction():
    truth = take(predicted(["A"], LOG1P_CP10K), ["B", "ABSENT", "A"])
    assert truth.place == {"B": 0, "A": 1}
    np.testing.assert_allclose(truth.values, np.log1p([[4000, 3000], [2000, 1000]]), rtol=1e-6)


def test_a_panel_scale_is_normalised_over_the_predicted_genes():
    scale = Scale(library="panel", size_factor=1.0)
    np.testing.assert_allclose(take(predicted(["B", "A"], scale), ["A"]).values[0], [4 / 7, 3 / 7], rtol=1e-6)
    with pytest.raises(GeneragError, match="lacks 1 of them, such as X"):
        take(predicted(["X", "A"], scale), ["A"])


def test_repeated_genes_of_the_truth_are_refused():
    with pytest.raises(GeneragError, match="occur twice"):
        take(predicted(["A"]), ["A"], genes=("A", "A", "C"))
