import dataclasses

import numpy as np
import pytest
from scipy import sparse

from genrag_cli.errors import CohortError, GeneragError
from genrag_cli.evaluation import evaluate
from genrag_cli.evaluation.metrics import pearson_per_gene
from genrag_cli.genes.scales import to_scale
from genrag_cli.types import COUNTS, LOG1P_CP10K, Expression, Scale

GENES = np.array([f"G{i}" for i in range(60)])
SPOTS = np.array([f"{i}x1" for i in range(40)])
COUNTS_TRUE = np.random.default_rng(0).poisson(np.linspace(1, 30, 60), (40, 60)) * np.arange(1, 41)[:, None]
TOTALS = COUNTS_TRUE.sum(axis=1).astype(float)


def expression(values, scale=LOG1P_CP10K, names=SPOTS, genes=GENES):
    return Expression(np.asarray(values, dtype=np.float32), np.asarray(names), np.asarray(genes), scale)


def noisy(scale=LOG1P_CP10K):
    truth = to_scale(COUNTS_TRUE, TOTALS, scale)
    return expression(truth + np.random.default_rng(1).normal(0, truth.std() / 5, truth.shape), scale)


def run(prediction, **changes):
    given = {
        "truth_counts": sparse.csr_matrix(COUNTS_TRUE),
        "truth_genes": GENES,
        "truth_names": SPOTS,
        "truth_totals": TOTALS,
        "to_scale": to_scale,
        "anchors": GENES[:12],
        "global_panel": GENES[5:],
        "bank_mean": expression(
            to_scale(COUNTS_TRUE, TOTALS, prediction.scale).mean(axis=0)[None], prediction.scale, ["mean"]
        ),
    }
    return {(s.method, s.panel, s.metric): s for s in evaluate(prediction, **(given | changes))}


def test_every_method_has_every_metric_of_its_panels():
    scores = run(noisy(), y_init=noisy())
    methods = ["retrieval", "shuffled", "bank_mean", "library_size"]
    core = ["PCC-10", "PCC-all", "MSE", "MAE", "RVD", "undefined"]
    expected = {(m, "core", k) for m in [*methods, "y_init"] for k in core}
    assert set(scores) == expected | {(m, "global", k) for m in methods for k in [*core, "PCC-50"]}


def test_the_truth_itself_scores_perfectly():
    scores = run(expression(to_scale(COUNTS_TRUE, TOTALS, LOG1P_CP10K)))
    values = [scores["retrieval", "global", m].value for m in ("PCC-50", "PCC-all", "MSE", "MAE", "RVD", "undefined")]
    assert values == pytest.approx([1, 1, 0, 0, 0, 0], abs=1e-9)


def test_scores_equal_the_metrics_on_the_panel():
    prediction = noisy()
    r = pearson_per_gene(prediction.values[:, 5:], to_scale(COUNTS_TRUE, TOTALS, LOG1P_CP10K)[:, 5:])
    scores = run(prediction)
    assert scores["retrieval", "global", "PCC-all"].value == pytest.approx(r.mean())
    assert scores["retrieval", "global", "PCC-10"].value == pytest.approx(np.sort(r)[-10:].mean())


def test_spots_and_genes_are_joined_by_name_not_by_position():
    prediction = noisy()
    spots, genes = np.random.default_rng(2).permutation(40), np.random.default_rng(3).permutation(60)
    turned = expression(prediction.values[spots][:, genes], names=SPOTS[spots], genes=GENES[genes])
    before, after = run(prediction), run(turned)
    for metric in ("PCC-all", "MSE", "RVD"):
        key = ("retrieval", "global", metric)
        assert after[key].value == pytest.approx(before[key].value)


def test_spots_that_do_not_join_are_left_out_and_said_on_every_row():
    prediction = noisy()
    part = dataclasses.replace(prediction, values=prediction.values[:30], names=np.array([*SPOTS[:29], "elsewhere"]))
    scores = run(part)
    assert {s.n_spots for s in scores.values()} == {29}
    assert all("1 predicted spots not measured, 11 measured spots not predicted" in s.note for s in scores.values())


def test_a_prediction_of_other_spots_is_refused():
    with pytest.raises(CohortError, match="0 of 40 predicted"):
        run(expression(np.zeros((40, 60)), names=[f"tile{i}" for i in range(40)]))


def test_shuffling_falls_to_chance_and_keeps_the_variance():
    scores = run(noisy())
    assert scores["retrieval", "global", "PCC-all"].value > 0.6
    assert abs(scores["shuffled", "global", "PCC-all"].value) < 0.1
    assert scores["shuffled", "global", "PCC-10"].value > 0.1  # picked on the test spots: chance is above 0
    assert scores["shuffled", "global", "RVD"].value == pytest.approx(scores["retrieval", "global", "RVD"].value)


def test_shuffling_follows_the_seed():
    values = [run(noisy(), seed=seed)["shuffled", "core", "PCC-all"].value for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]


def test_constant_baselines_are_kept_as_undefined_with_a_reason():
    scores = run(noisy())
    for method in ("bank_mean", "library_size"):
        row = scores[method, "core", "PCC-10"]
        assert row.value is None
        assert "no correlation is defined for any of 12 genes" in row.note
        assert row.n_undefined == 12
        assert scores[method, "core", "RVD"].value == pytest.approx(1)
    assert "divides the library size out" in scores["library_size", "core", "MSE"].note


def test_depth_alone_correlates_in_counts():
    scores = run(noisy(COUNTS))
    assert scores["bank_mean", "global", "PCC-all"].value is None
    assert scores["library_size", "global", "PCC-all"].value > 0.5


def test_counts_are_scored_in_logs_and_clipped_predictions_are_counted():
    values = COUNTS_TRUE.astype(float)
    values[:2, 5:] = -1
    scores = run(expression(values, COUNTS))
    row = scores["retrieval", "global", "MSE"]
    expected = np.log1p(COUNTS_TRUE[:2, 5:]) ** 2
    assert row.value == pytest.approx(expected.sum() / (40 * 55), rel=1e-6)
    assert "scored as ln(1 + x), 110 predictions below 0 taken as 0" in row.note


def test_k_beyond_the_defined_genes_is_refused_unless_short_is_allowed():
    prediction = noisy()
    prediction.values[:, :4] = 1
    refused, short = run(prediction), run(prediction, allow_short=True)
    row = refused["retrieval", "core", "PCC-10"]
    assert (row.value, row.n_undefined) == (None, 4)
    assert "refused: 10 genes asked for, 8 of 12 are defined" in row.note
    assert short["retrieval", "core", "PCC-10"].value == pytest.approx(refused["retrieval", "core", "PCC-all"].value)
    assert refused["retrieval", "core", "undefined"].value == 4


def test_panel_genes_that_are_missing_are_said_and_not_scored():
    prediction = noisy()
    part = expression(prediction.values[:, 2:], genes=GENES[2:])
    scores = run(part, anchors=np.array([*GENES[:11], "UNMEASURED"]))
    row = scores["retrieval", "core", "MSE"]
    assert row.n_genes == 9
    assert "of 12 genes of the panel, 3 not predicted and 1 not measured" in row.note
    assert scores["bank_mean", "core", "MSE"].n_genes == 11


def test_a_panel_without_any_shared_gene_keeps_its_rows_without_values():
    scores = run(noisy(), anchors=np.array(["X1", "X2"]))
    row = scores["retrieval", "core", "PCC-all"]
    assert (row.value, row.n_genes) == (None, 0)
    assert "2 not measured" in row.note


def test_library_size_has_no_value_in_logs_of_counts():
    scale = Scale(log="log2")
    row = run(noisy(scale))["library_size", "core", "MSE"]
    assert row.value is None
    assert "not defined in scale log2_counts" in row.note


def test_first_predictions_are_scored_on_the_core_panel_by_their_own_names():
    first = noisy()
    turned = expression(first.values[::-1][:, [3, 1, 2, 0]], names=SPOTS[::-1], genes=GENES[[3, 1, 2, 0]])
    scores = run(noisy(), y_init=turned, anchors=GENES[:4])
    assert scores["y_init", "core", "PCC-all"].value == pytest.approx(scores["retrieval", "core", "PCC-all"].value)


@pytest.mark.parametrize("what", ["y_init", "bank_mean"])
def test_two_scales_are_not_compared(what):
    other = expression(np.ones((1, 60)), COUNTS, ["mean"])
    with pytest.raises(GeneragError, match=f"{what} is in scale counts, the prediction in log1p_cp10k"):
        run(noisy(), **{what: other})


def test_a_bank_mean_of_several_rows_and_missing_first_predictions_are_refused():
    with pytest.raises(GeneragError, match="expected one row, found 40"):
        run(noisy(), bank_mean=noisy())
    with pytest.raises(GeneragError, match="y_init lacks 10 of 40"):
        run(noisy(), y_init=expression(np.ones((30, 60)), names=SPOTS[:30]))


@pytest.mark.real
def test_on_her2st_the_mean_of_a_section_is_undefined_and_depth_alone_is_not(shared_data):
    from genrag_cli.cohorts import read_truth

    truth, bank = (read_truth(f"{shared_data / 'her2st'}:{name}") for name in ("C2", "C3"))
    panel = np.array(["ERBB2", "COL1A1", "KRT19", "ACTB", "IGKC", "FASN", "CD74", "FN1", "GAPDH", "B2M"])
    mean = Expression(np.asarray(bank.counts.mean(axis=0), np.float32), np.array(["mean"]), bank.genes, COUNTS)
    column = {gene: i for i, gene in enumerate(truth.genes.tolist())}
    own = Expression(
        truth.counts[:, [column[g] for g in panel]].toarray().astype(np.float32), truth.names, panel, COUNTS
    )
    scores = evaluate(
        own,
        truth.counts,
        truth.genes,
        truth.names,
        truth.total_counts,
        to_scale=to_scale,
        anchors=panel,
        global_panel=panel,
        bank_mean=mean,
    )
    value = {(s.method, s.metric): s.value for s in scores if s.panel == "core"}
    assert value["retrieval", "PCC-10"] == pytest.approx(1)
    assert value["bank_mean", "PCC-10"] is None
    assert 0.2 < value["library_size", "PCC-10"] < 1
    assert value["shuffled", "PCC-all"] < 0.15


def with_gaps(scale=LOG1P_CP10K, filler=1.0):
    """The noisy prediction without gene 0 at half of the spots and without genes 20 and 21 at all but two."""
    prediction = noisy(scale)
    present = np.ones(prediction.values.shape, bool)
    present[::2, 0] = present[2:, 20:22] = False
    prediction.values[~present] = filler
    return dataclasses.replace(prediction, present=present)


@pytest.mark.parametrize("scale", [LOG1P_CP10K, COUNTS])
def test_fillers_are_scored_in_no_method(scale):
    low, high = (run(with_gaps(scale, filler), y_init=noisy(scale)) for filler in (1.0, 1e4))
    assert {k: s.value for k, s in low.items()} == {k: s.value for k, s in high.items()}


def test_every_method_is_scored_over_the_same_values():
    scores = run(with_gaps(), y_init=noisy())
    for method in ("retrieval", "y_init", "shuffled", "bank_mean", "library_size"):
        assert "20 of 480 values are missing in the prediction, not scored" in scores[method, "core", "MSE"].note
    truth = to_scale(COUNTS_TRUE, TOTALS, LOG1P_CP10K)[:, :12]
    mean, here = truth.mean(axis=0), with_gaps().present[:, :12]
    assert scores["bank_mean", "core", "MSE"].value == pytest.approx(np.mean((truth - mean)[here] ** 2), rel=1e-6)
    expected = np.mean((noisy().values[:, :12] - truth)[here] ** 2)
    for method in ("retrieval", "y_init"):
        assert scores[method, "core", "MSE"].value == pytest.approx(expected, rel=1e-6)


def test_genes_present_in_fewer_than_three_spots_are_undefined_and_counted():
    scores = run(with_gaps())
    assert scores["retrieval", "global", "undefined"].value == 2
    assert scores["retrieval", "global", "PCC-50"].n_undefined == 2
    assert scores["shuffled", "global", "undefined"].value == 2
    assert scores["retrieval", "global", "PCC-50"].value is not None
    assert scores["retrieval", "global", "PCC-10"].n_genes == 55


def test_values_are_missing_by_name_and_first_predictions_of_other_genes_keep_theirs():
    prediction = with_gaps()
    spots, genes = np.random.default_rng(2).permutation(40), np.random.default_rng(3).permutation(60)[:50]
    present = prediction.present[spots][:, genes]
    turned = expression(prediction.values[spots][:, genes], names=SPOTS[spots], genes=GENES[genes])
    scores = run(dataclasses.replace(turned, present=present), y_init=noisy())
    named = np.isin(GENES[:12], GENES[genes])
    here = np.where(named, prediction.present[:, :12], True)
    truth = to_scale(COUNTS_TRUE, TOTALS, LOG1P_CP10K)[:, :12]
    expected = np.mean((noisy().values[:, :12] - truth)[here] ** 2)
    assert scores["y_init", "core", "MSE"].value == pytest.approx(expected, rel=1e-6)


def test_a_prediction_that_is_present_everywhere_scores_as_one_that_says_nothing():
    said = dataclasses.replace(noisy(), present=np.ones((40, 60), bool))
    after, before = (run(p, y_init=noisy()) for p in (said, noisy()))
    assert {k: (s.value, s.note) for k, s in after.items()} == {k: (s.value, s.note) for k, s in before.items()}


def test_a_panel_that_is_missing_everywhere_has_no_values():
    prediction = with_gaps()
    prediction.present[:, :12] = False
    scores = run(prediction)
    assert {scores["retrieval", "core", m].value for m in ("PCC-all", "MSE", "MAE", "RVD")} == {None}
    assert scores["retrieval", "core", "undefined"].value == 12


def test_presence_must_fit_the_values():
    with pytest.raises(GeneragError, match=r"Expression\.present"):
        dataclasses.replace(noisy(), present=np.ones((40, 59), bool))
