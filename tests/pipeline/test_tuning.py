"""Folds within a bank: who is left out, what is chosen, and whether what they say holds for new patients."""

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from genrag_cli.errors import GeneragError, UsageError
from genrag_cli.evaluation.metrics import pearson_per_gene
from genrag_cli.evaluation.trust import conformal_offsets, coverage
from genrag_cli.pipeline.derive import measure_spread
from genrag_cli.pipeline.tuning import search as searching
from genrag_cli.pipeline.tuning.data import BankData, split
from genrag_cli.pipeline.tuning.model import Retriever, fit
from genrag_cli.pipeline.tuning.search import MARGIN, Tried, make_splits, search
from genrag_cli.pipeline.tuning.settings import Settings
from genrag_cli.pipeline.tuning.trust import Trust, assess, expect_pcc, mean_over, percentile_of
from genrag_cli.pipeline.tuning.tune import collect
from genrag_cli.pipeline.tuning.tuning import OUT_OF_BANK, Tuning
from genrag_cli.types import Listener

make = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("write_lattice_bank.py"))))
SIMPLE = Settings(references=10, share=0.5)
KNOWN, NEW = range(14), range(14, 20)


def sections(patients, **options):
    """One section per letter of `patients`; a dash is an unknown one."""
    return [make.draw(f"S{i}", None if p == "-" else p, **options) for i, p in enumerate(patients)]


def rows_of(data, numbers):
    return np.flatnonzero(np.isin(data.section_of, list(numbers)))


# Folds.


@pytest.mark.parametrize(
    ("patients", "by", "rule", "n_folds"),
    [
        ("ABC", "auto", "leave-one-patient-out", 3),
        ("AABBC", "auto", "leave-one-patient-out", 3),
        ("ABCDEFG", "auto", "leave-one-patient-out", 5),
        ("AB-", "auto", "leave-one-section-out", 3),
        ("AAA", "auto", "leave-one-section-out", 3),
        ("AABB", "sections", "leave-one-section-out", 4),
        ("A", "auto", "spatial-blocks", 5),
        ("AB", "blocks", "spatial-blocks", 5),
    ],
)
def test_folds_leave_out_patients_else_sections_else_blocks(patients, by, rule, n_folds):
    data = make.hold(sections(patients))
    folds, found = split(data, np.arange(len(data)), by)
    assert (found, len(np.unique(folds))) == (rule, n_folds)
    groups = {"leave-one-patient-out": data.patients, "leave-one-section-out": data.names}.get(rule)
    for group in [] if groups is None else np.unique(groups):
        assert len(np.unique(folds[groups[data.section_of] == group])) == 1


def test_training_spots_of_a_fold_are_never_of_the_patients_that_are_asked_about():
    data = make.hold(sections("AABCDEFGG", side=5))
    everything = np.arange(len(data))
    splits = make_splits(data, everything, split(data, everything)[0])
    asked_of = []
    for part in splits:
        asked = np.unique(data.patients[data.section_of[np.concatenate(part.asked)]])
        assert not np.isin(asked, data.patients[data.section_of[part.train]]).any()
        assert all(len(np.unique(data.section_of[rows])) == 1 for rows in part.asked)
        asked_of += asked.tolist()
    assert sorted(asked_of) == list("ABCDEFG")


def test_only_some_spots_of_the_rows_given_take_part():
    data = make.hold(sections("ABCD", side=5))
    rows = rows_of(data, [0, 1, 3])
    splits = make_splits(data, rows, split(data, rows)[0], most=45)
    assert [sum(map(len, part.asked)) for part in splits] == [15, 15, 15]
    for part in splits:
        assert np.isin(np.concatenate([part.train, *part.asked]), rows).all()
        assert set(part.train).isdisjoint(np.concatenate(part.asked))


@pytest.mark.parametrize(
    ("patients", "by", "text"),
    [("AA-", "patients", "two patients"), ("AA", "patients", "two"), ("A", "sections", "one")],
)
def test_folds_that_there_are_none_of_are_refused(patients, by, text):
    data = make.hold(sections(patients, side=4))
    with pytest.raises(UsageError, match=text):
        split(data, np.arange(len(data)), by)


def test_sections_too_small_for_a_correlation_are_refused():
    data = make.hold(sections("ABC", side=3))
    with pytest.raises(GeneragError, match="0 folds with 10 spots or more"):
        make_splits(data, np.arange(len(data)), split(data, np.arange(len(data)))[0])


# What a split is fitted to.


def test_a_fit_knows_nothing_of_the_expression_that_is_held_out():
    plain = sections("ABCD")
    rng = np.random.default_rng(3)
    mixed = [*plain[:3], plain[3].but(counts=rng.permuted(rng.permutation(plain[3].counts), axis=1))]
    train = np.arange(108)
    one, other = (fit(make.hold(s), SIMPLE, train) for s in (plain, mixed))
    for name in ("genes", "anchors", "core", "wide", "mean", "features", "scores"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    np.testing.assert_array_equal(one.regression.coef, other.regression.coef)
    asked = np.arange(108, 144)
    (first,), (second,) = (Retriever.of(f, SIMPLE).ask(asked) for f in (one, other))
    np.testing.assert_array_equal(first.dense(), second.dense())


def test_embeddings_are_standardised_by_training_sections_where_the_bank_standardises():
    data = make.hold(sections("ABC"))
    train = rows_of(data, [0, 2])
    found, scale = data.features(Settings(standardise="bank"), train)
    raw = np.concatenate(data.bank.embeddings)
    mean, sd = measure_spread(raw[train])
    np.testing.assert_allclose(found / scale, (raw - mean) / sd, rtol=1e-4, atol=1e-5)
    assert np.mean(found[train].astype(float) ** 2) == pytest.approx(1, rel=1e-5)


def test_a_large_bank_is_drawn_down_to_an_even_share_of_each_section(tmp_path):
    measured = np.arange(make.N_GENES) != 7
    drawn = [make.draw("S0", "A", side=8), make.draw("S1", "B", side=4).but(measured=measured)]
    bank = make.write_bank(tmp_path / "b", drawn)
    whole, data = BankData.of(bank), BankData.of(bank, most=40)
    assert np.bincount(data.section_of).tolist() == [32, 8]
    places = np.concatenate([data.rows[0], 64 + data.rows[1]])
    assert (data.expression != whole.expression[places]).nnz == 0
    settings = Settings(context=0.5)
    some, whole_features = (d.features(settings, np.arange(len(d))) for d in (data, whole))
    np.testing.assert_allclose(some[0] / some[1], whole_features[0][places] / whole_features[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(data.common, measured)
    assert not np.isin(7, np.concatenate(data.panels(np.arange(2))[:2]))
    stored = collect(data, fit(data, SIMPLE, np.arange(40)), SIMPLE, no_trust())["regression/coef"]
    assert stored[-1, 7] == np.float32(bank.derived["genes/log1p_cp10k/mean"][7])
    assert not stored[:-1, 7].any()


def no_trust():
    unknown = np.full(make.N_GENES, np.nan)
    return Trust(*[unknown] * 5, np.zeros(3), np.zeros(3), {}, {}, 0)


# The search.


def test_each_stage_starts_from_the_best_and_small_gains_do_not_count(monkeypatch):
    gains = {"context": {0.0: 0.5, 0.5: 0.5 + MARGIN / 2, 0.7: 0.4}, "omega": {0.5: 0.61, 0.75: 0.61 + MARGIN / 2}}
    asked = []

    def pretend(data, splits, stage, candidates, steps):
        asked.extend((stage, c.context, c.omega, c.l1_ratio) for c in candidates)
        for c in candidates:
            score = gains.get(stage, {}).get(getattr(c, stage, None), 0.1)
            yield Tried(stage, c, score, (score,), 10.0)

    monkeypatch.setattr(searching, "try_settings", pretend)
    best, tried = search(None, [], Settings(), lambda _: None)
    assert (best.settings.context, best.settings.omega, best.settings.l1_ratio) == (0.0, 0.75, 0.9)
    stages = [a[0] for a in asked]
    wanted = {"context": 3, "ridge": 2, "omega": 4, "l1_ratio": 2, "preparation": 4}
    assert {s: stages.count(s) for s in stages} == wanted
    # The present setting stands in every stage after the first.
    assert len(tried) == len(asked) + len(wanted) - 1
    assert all(a[1:3] == (0.0, 0.75) for a in asked if a[0] in ("l1_ratio", "preparation"))


def test_the_scores_of_a_setting_are_those_of_its_predictions():
    data = make.hold(sections("ABC", side=5))
    splits = make_splits(data, np.arange(len(data)), split(data, np.arange(len(data)))[0])
    tried = {t.settings.share: t for t in searching.try_settings(data, splits, "omega", [SIMPLE], (1.0,))}
    assert set(tried) == {0.25, 0.5, 0.75, 1.0}
    part = splits[1]
    retriever = Retriever.of(fit(data, SIMPLE, part.train), SIMPLE)
    (codes,) = retriever.ask(part.asked[0], gap=1e-3, searched_on=searching.ROUGHLY_ON)
    parts, core = retriever.parts(part.asked[0], codes), retriever.fit.core
    predicted = 0.75 * parts.regression + 0.25 * parts.retrieval
    r = np.sort(pearson_per_gene(predicted[:, core], parts.truth[:, core]))[::-1]
    wide = np.sort(pearson_per_gene(predicted, parts.truth)[retriever.fit.wide])[::-1]
    assert tried[0.25].by_fold[1] == pytest.approx(np.mean([r[:10].mean(), wide[:10].mean()]), abs=1e-5)
    assert tried[0.25].score == pytest.approx(np.mean(tried[0.25].by_fold))


# What folds claim, and new patients.


@pytest.fixture(scope="module")
def cohort():
    """Twenty patients: what the folds of fourteen claim, and predictions of the other six by all fourteen."""
    data = make.hold([make.draw(f"S{i:02}", f"PS{i:02}") for i in (*KNOWN, *NEW)])
    train = rows_of(data, KNOWN)
    splits = make_splits(data, train, split(data, train)[0])
    trust = assess(data, splits, SIMPLE, 0, Listener())
    retriever = Retriever.of(fit(data, SIMPLE, train, np.arange(make.N_GENES)), SIMPLE)
    new = []
    for section in NEW:
        rows = rows_of(data, [section])
        (codes,) = retriever.ask(rows)
        parts = retriever.parts(rows, codes)
        new.append((parts.predict(0.5), parts.truth, *retriever.residuals(rows, codes)))
    return SimpleNamespace(data=data, splits=splits, trust=trust, new=new, retriever=retriever)


def test_intervals_hold_nine_of_ten_values_of_new_patients(cohort):
    inside = [coverage(t, p + cohort.trust.low, p + cohort.trust.high)[1] for p, t, *_ in cohort.new]
    assert 0.87 <= np.mean(inside) <= 0.93
    assert (cohort.trust.high - cohort.trust.low).mean() < 4 * np.concatenate([t for _, t, *_ in cohort.new]).std()


@pytest.mark.parametrize("block", [0, 1], ids=["morphology", "anchor"])
def test_residuals_of_new_patients_are_spread_over_the_percentiles(cohort, block):
    quantiles = (cohort.trust.morphology, cohort.trust.anchor)[block]
    found = percentile_of(np.concatenate([n[2 + block] for n in cohort.new]), quantiles)
    shares = np.histogram(found, [0, 25, 50, 75, 100.1])[0] / len(found)
    assert 0.15 < shares.min() < shares.max() < 0.35
    assert 40 < found.mean() < 60


def test_spots_like_nothing_in_the_bank_are_flagged_and_others_are_not(cohort):
    known, rng, flagged = cohort.retriever, np.random.default_rng(0), []
    for section in NEW:
        rows = rows_of(cohort.data, [section])
        noisy = known.fit.features.copy()
        noisy[rows[::2]] = rng.normal(size=(len(rows[::2]), 12))
        strange = replace(known, fit=replace(known.fit, features=noisy))
        (codes,) = strange.ask(rows)
        flagged.append(percentile_of(strange.residuals(rows, codes)[0], cohort.trust.morphology) > OUT_OF_BANK)
    usual = percentile_of(np.concatenate([n[2] for n in cohort.new]), cohort.trust.morphology) > OUT_OF_BANK
    assert usual.mean() < 0.04
    assert np.mean([f[::2] for f in flagged]) > 0.8
    assert np.mean([f[1::2] for f in flagged]) < 0.04


def test_what_folds_gave_of_a_gene_is_its_mean_over_sections_then_folds(cohort):
    data, by_fold, left = cohort.data, [], []
    for part in cohort.splits:
        retriever = Retriever.of(fit(data, SIMPLE, part.train, np.arange(make.N_GENES)), SIMPLE)
        own = []
        for rows in part.asked:
            parts = retriever.parts(rows, *retriever.ask(rows))
            own.append(pearson_per_gene(parts.predict(0.5), parts.truth))
            left.append(parts.truth - parts.predict(0.5))
        by_fold.append(np.mean(own, axis=0))
    np.testing.assert_allclose(cohort.trust.oof_pcc, np.mean(by_fold, axis=0), atol=1e-6)
    low, high = conformal_offsets(np.concatenate(left), 0.9)
    np.testing.assert_allclose([cohort.trust.low, cohort.trust.high], [low, high], atol=1e-5)
    assert cohort.trust.n_spots == 14 * 36
    assert sorted(cohort.trust.sections) == [f"S{i:02}" for i in KNOWN]


def test_expected_correlations_hold_on_new_patients(cohort):
    realised = np.mean([pearson_per_gene(p, t) for p, t, *_ in cohort.new], axis=0)
    assert np.corrcoef(realised, cohort.trust.expected_pcc)[0, 1] > 0.8
    assert abs((realised - cohort.trust.expected_pcc).mean()) < 0.05
    best = np.argsort(cohort.trust.expected_pcc)
    assert realised[best[-5:]].mean() > realised[best[:5]].mean() + 0.1


def test_genes_and_spots_are_described_by_what_folds_said():
    arrays = {
        "genes/expected_pcc": np.array([0.4, -0.4, 0.4, np.nan]),
        "genes/oof_pcc": np.array([0.5, -0.5, 0.5, np.nan]), "genes/q_value": np.array([0.05, 0.01, 0.06, np.nan]),
        "genes/low": -np.arange(4.0), "genes/high": np.arange(4.0), "spots/morphology": np.linspace(0, 1, 1001),
        "spots/anchor": np.linspace(0, 2, 1001),
    }  # fmt: skip
    tuning = Tuning(1, SIMPLE, arrays, {})
    assert tuning.describe_genes(np.arange(4))["predictable"].tolist() == [True, False, False, False]
    assert tuning.describe_genes(np.array([2, 0]))["interval_high"].tolist() == [2, 0]
    found = tuning.describe_spots(np.array([0.5, 0.985, 0.995, 2]), np.array([0.5, 1, 1.99, -1]))
    assert found["generag_out_of_bank"].tolist() == [False, False, True, True]
    np.testing.assert_allclose(found["generag_morphology_percentile"], [50, 98.5, 99.5, 100], atol=0.1)
    np.testing.assert_allclose(found["generag_anchor_percentile"], [25, 50, 99.5, 0], atol=0.1)


def test_expectations_pull_noisy_correlations_to_what_genes_like_them_reached():
    rng = np.random.default_rng(0)
    level = np.repeat([0.0, 0.4], 300)
    r = level + rng.normal(0, 0.15, (4, 600))
    mean = np.exp(level * 5)
    found = expect_pcc(r, np.tile(level, (4, 1)), mean, np.full(600, 0.5))
    fresh = level + rng.normal(0, 0.15, 600)
    assert np.mean((found - fresh) ** 2) < np.mean((r.mean(axis=0) - fresh) ** 2)
    r[:, 5] = np.nan
    assert np.isnan(expect_pcc(r, np.tile(level, (4, 1)), mean, np.full(600, 0.5))[5])
    np.testing.assert_allclose(expect_pcc(r[:, :20], r[:, :20], mean[:20], mean[:20]), r[:, :20].mean(axis=0))


def test_means_leave_out_what_is_undefined():
    found = mean_over([np.array([1, np.nan, np.nan]), np.array([3, 5, np.nan])])
    np.testing.assert_array_equal(found, [2, 5, np.nan])
