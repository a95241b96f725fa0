"""Protocols: who is held out, that nothing of them is seen, what they are compared with, and leaks that are planted."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from genrag_cli.backbones.folds import fold_groups
from genrag_cli.backbones.probe import fit_head
from genrag_cli.errors import CohortError, UsageError
from genrag_cli.evaluation.metrics import pearson_per_gene
from genrag_cli.genes.panels import core_panel
from genrag_cli.pipeline.anchors import AnchorOptions, stored_statistics
from genrag_cli.pipeline.protocols import baselines
from genrag_cli.pipeline.protocols.fold import Answer, run_fold
from genrag_cli.pipeline.protocols.leakage import judge_listed_panel, look_for_leaks
from genrag_cli.pipeline.protocols.plan import Held, Protocol, folds_by, plan_folds
from genrag_cli.pipeline.protocols.scoring import score_answer
from genrag_cli.pipeline.tuning import search
from genrag_cli.pipeline.tuning.model import fit
from genrag_cli.pipeline.tuning.settings import PAPER, Settings
from genrag_cli.types import COUNTS, LOG1P_CP10K, Listener

make = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("write_lattice_bank.py"))))
RNG = np.random.default_rng(0)


def entries(**patients):
    return [{"name": name, "patient": patient} for name, patient in patients.items()]


def planned(text, sections):
    names = [s["name"] for s in sections]
    return [
        (h.name, " ".join(names[i] for i in h.train), " ".join(names[i] for i in h.test))
        for h in plan_folds(Protocol.parse(text), sections)
    ]


# Who is held out.

SECTIONS = entries(A1="A", B1="B", A2="A", C1="C")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "leave-patient-out",
            [("patient A", "B1 C1", "A1 A2"), ("patient B", "A1 A2 C1", "B1"), ("patient C", "A1 B1 A2", "C1")],
        ),
        ("leave-patient-out:A2", [("patient A", "B1 C1", "A2")]),
        ("leave-section-out:C1, A1", [("C1", "A1 B1 A2", "C1"), ("A1", "B1 A2 C1", "A1")]),
        ("fixed:C1,A1", [("fixed", "B1 A2", "C1 A1")]),
    ],
)
def test_folds_are_planned_over_sections(text, expected):
    assert planned(text, SECTIONS) == expected
    assert str(Protocol.parse(text)) == text.replace(" ", "")


def test_leaving_sections_out_tests_each_once():
    found = planned("leave-section-out", SECTIONS)
    assert [test for _, _, test in found] == ["A1", "B1", "A2", "C1"]
    assert all(sorted([*train.split(), test]) == ["A1", "A2", "B1", "C1"] for _, train, test in found)


@pytest.mark.parametrize(
    ("text", "sections", "error", "said"),
    [
        ("fixed:A3", SECTIONS, UsageError, "no section 'A3'"),
        ("fixed:A1,A2,B1,C1", SECTIONS, CohortError, "no section is left"),
        ("leave-patient-out", entries(A1="A", A2="A"), CohortError, "no section is left"),
        ("leave-section-out", entries(A1="A"), CohortError, "no section is left"),
        ("leave-patient-out", entries(A1="A", B1=None), CohortError, "unknown"),
        ("leave-patient-out:B1", entries(A1=None, B1="B"), CohortError, "unknown"),
    ],
)
def test_folds_that_cannot_be_are_refused(text, sections, error, said):
    with pytest.raises(error, match=said):
        planned(text, sections)


@pytest.mark.parametrize("text", ["fixed", "fixed: ,", "leave-one-out", ""])
def test_protocols_that_there_are_none_of_are_refused(text):
    with pytest.raises(UsageError):
        Protocol.parse(text)


def test_settings_are_chosen_for_the_question_that_is_asked():
    kinds = ("leave-patient-out", "leave-section-out", "fixed:A1")
    assert [folds_by(Protocol.parse(k), None) for k in kinds] == ["auto", "sections", "auto"]
    assert folds_by(Protocol.parse("leave-section-out"), "blocks") == "blocks"


# One fold.

STAGES = (
    ("omega", lambda _: [{"omega": o} for o in (0.05, 0.25, 0.95)]),
    ("preparation", lambda _: [{"centred": False}, {"anchor_scale": "cp10k"}, {"standardise": "bank"}]),
)
"""Context needs files; it looks at embeddings alone."""


def drawn(patients="ABCA", side=5):
    return [make.draw(f"S{i}", p, side=side) for i, p in enumerate(patients)]


def run(data, test=3, **options):
    train = tuple(i for i in range(len(data.sections)) if i != test)
    how = {"published": False, "by": "auto", "seed": 0, "listener": Listener(), **options}
    result, answers = run_fold(data, Held("x", train, (test,)), **how)
    return result, {a.method: a for a in answers}


@pytest.fixture(scope="module")
def whole_fold():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "STAGES", STAGES)
        return run(make.hold(drawn()))


def test_neither_settings_nor_predictions_know_the_expression_of_the_test_section(whole_fold, monkeypatch):
    monkeypatch.setattr(search, "STAGES", STAGES)
    sections, rng = drawn(), np.random.default_rng(1)
    other = rng.permuted(rng.permutation(sections[3].counts), axis=1) * 3
    result, answers = run(make.hold([*sections[:3], sections[3].but(counts=other)]))
    first, expected = whole_fold
    assert (result.settings, result.tried) == (first.settings, first.tried)
    assert len({t.settings for t in result.tried}) > 20
    np.testing.assert_array_equal(result.genes, first.genes)
    np.testing.assert_array_equal(result.trust.expected_pcc, first.trust.expected_pcc)
    assert set(answers) == set(expected)
    for method, answer in answers.items():
        np.testing.assert_array_equal(answer.values, expected[method].values, err_msg=method)
    assert (result.whole[3][1] != first.whole[3][1]).mean() > 0.5


def test_settings_do_not_know_the_embeddings_of_the_test_section(whole_fold, monkeypatch):
    monkeypatch.setattr(search, "STAGES", STAGES)
    sections = drawn()
    noise = np.random.default_rng(2).normal(5, 3, size=sections[3].features.shape).astype(np.float32)
    data = make.hold([*sections[:3], sections[3].but(features=noise)])
    monkeypatch.setattr("genrag_cli.pipeline.protocols.fold._answers", lambda *_: iter(()))
    result, _ = run(data)
    assert (result.settings, result.tried) == (whole_fold[0].settings, whole_fold[0].tried)


def test_every_method_answers_and_the_method_leads_those_that_know_less(whole_fold):
    result, answers = whole_fold
    assert set(answers) == {
        "retrieval", "first guess", "untuned", "regression beside it", "ridge, embedding to all",
        "ridge, anchors to all", "nearest neighbours", "BLEEP-style 50", "omega 0", "omega 1", "same patient removed",
        "permuted bank", "shuffled", "library size", "mean profile",
    }  # fmt: skip
    truth = result.whole[3][1][:, np.searchsorted(result.fit.genes, result.genes)]
    told = ("retrieval", "untuned", "ridge, embedding to all", "nearest neighbours", "same patient removed")
    known, blind = (
        [pearson_per_gene(answers[m].values[0], truth).mean() for m in methods]
        for methods in (told, ("permuted bank", "shuffled"))
    )
    assert min(known) > 0.4
    assert max(np.abs(blind)) < 0.2
    assert all(np.ptp(answers[m].values[0], axis=0).max() == 0 for m in ("mean profile", "library size"))


def test_preset_paper_takes_published_values_on_raw_counts():
    result, answers = run(make.hold(drawn("ABC"), COUNTS), test=2, published=True)
    assert (result.settings, result.tried, result.trust) == (PAPER, [], None)
    assert not {"untuned", "regression beside it", "same patient removed"} & set(answers)
    library = answers["library size"].values[0]
    assert np.ptp(library, axis=0).max() > 0
    assert 0.2 < answers["retrieval"].values[0].mean() / result.fit.mean.mean() < 2


# What it is compared with, by hand.


@pytest.fixture(scope="module", params=[4, 7], ids=["32 spots", "98 spots"])
def plain(request):
    """A fit on two sections, in memory, and the rows of a third."""
    data = make.hold(drawn("ABC", request.param))
    train, asked = (np.flatnonzero((data.section_of < 2) == side) for side in (True, False))
    fitted = fit(data, Settings(), train)
    return SimpleNamespace(fit=fitted, genes=np.array([3, 8, 30]), train=train, asked=asked, data=data)


def measured(p, rows):
    return p.data.expression[rows][:, p.genes].toarray().astype(float)


def test_nearest_neighbours_are_weighed_by_one_over_distance(plain):
    found = baselines.nearest_neighbours(plain.fit, plain.genes)(plain.asked)
    features, values = plain.fit.features.astype(float), measured(plain, plain.train)
    for row, one in zip(plain.asked, found, strict=True):
        far = np.linalg.norm(features[plain.train] - features[row], axis=1)
        near = np.argsort(far)[:50]
        np.testing.assert_allclose(one, np.average(values[near], axis=0, weights=1 / far[near]), rtol=1e-4)


def test_the_most_similar_spots_are_averaged_plainly(plain):
    found = baselines.bleep_uniform(plain.fit, plain.genes)(plain.asked)
    features, values = plain.fit.features.astype(float), measured(plain, plain.train)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for row, one in zip(plain.asked, found, strict=True):
        near = np.argsort(-(unit[plain.train] @ unit[row]))[:50]
        np.testing.assert_allclose(one, values[near].mean(axis=0), rtol=1e-4, atol=1e-6)
    assert (np.ptp(found, axis=0).max() < 1e-5) == (len(plain.train) < 50)


def head_of(p, inputs):
    sections = p.data.section_of[p.train]
    labels, _ = fold_groups(p.data.patients[sections], p.data.names[sections], p.data.centres()[p.train])
    return fit_head(inputs, measured(p, p.train), labels)


def test_ridge_from_the_embedding_is_the_banks_head(plain):
    found = baselines.ridge_from_embedding(plain.fit, plain.genes)(plain.asked)
    head = head_of(plain, plain.fit.features[plain.train])
    np.testing.assert_allclose(found, head.predict(plain.fit.features[plain.asked]), atol=1e-5)
    model = Ridge(alpha=len(plain.train) * head.strength)
    model.fit(plain.fit.features[plain.train].astype(float), measured(plain, plain.train))
    np.testing.assert_allclose(found, model.predict(plain.fit.features[plain.asked]), atol=1e-4)


def test_ridge_from_anchors_learns_from_measured_ones_and_is_fed_the_first_guess(plain):
    found, fitted = baselines.ridge_from_anchors(plain.fit, plain.genes)(plain.asked), plain.fit
    anchors = plain.data.expression[plain.train][:, fitted.anchors].toarray().astype(float)
    guess = fitted.regression.predict(fitted.basis.scores(fitted.features[plain.asked]))[:, fitted.core]
    head = head_of(plain, (anchors - anchors.mean(0)) / anchors.std(0))
    np.testing.assert_allclose(found, head.predict((guess - anchors.mean(0)) / anchors.std(0)), atol=1e-4)


# Scores.

PANELS = SimpleNamespace(core=np.arange(12), wide=np.arange(5, 60))
COUNTED = RNG.poisson(5, (30, 60)).astype(np.float32)
PREDICTED = np.maximum(COUNTED + RNG.normal(0, 3, (30, 60)), 0).astype(np.float32)


def test_raw_counts_are_scored_as_logs():
    found = score_answer(Answer("m", 0, [PREDICTED]), COUNTED, PANELS, COUNTS)
    p, t = np.log1p(PREDICTED), np.log2(1 + COUNTED)
    r = np.array([np.corrcoef(p[:, g], t[:, g])[0, 1] for g in range(60)])
    assert found["core 10"] == pytest.approx(np.sort(r[:12])[-10:].mean(), abs=1e-6)
    assert found["global 50"] == pytest.approx(np.sort(r[5:])[-50:].mean(), abs=1e-6)
    assert (found["core all"], found["global all"]) == pytest.approx((r[:12].mean(), r[5:].mean()), abs=1e-6)
    assert found["global mse"] == pytest.approx(np.mean((p - np.log1p(COUNTED))[:, 5:] ** 2), rel=1e-5)
    assert not {"core 50", "core 300", "global 300"} & set(found)


def test_logs_are_scored_as_they_are():
    found = score_answer(Answer("m", 0, [PREDICTED - 9]), COUNTED, PANELS, LOG1P_CP10K)
    assert found["core all"] == pytest.approx(np.mean(pearson_per_gene(PREDICTED, COUNTED)[:12]))
    assert found["core mse"] == pytest.approx(np.mean((PREDICTED - 9 - COUNTED)[:, :12].astype(float) ** 2))


def test_undefined_genes_are_counted_and_left_out():
    flat = PREDICTED.copy()
    flat[:, 7:11] = 2
    refused = score_answer(Answer("m", 0, [flat]), COUNTED, PANELS, LOG1P_CP10K)
    assert (refused["core 10"], refused["core undefined"], refused["global undefined"]) == (None, 4, 4)
    found = score_answer(Answer("m", 0, [flat]), COUNTED, PANELS, LOG1P_CP10K, allow_short=True)
    kept = [g for g in range(12) if not 7 <= g < 11]
    assert found["core 10"] == found["core all"] == pytest.approx(np.mean(pearson_per_gene(flat, COUNTED)[kept]))
    nothing = score_answer(Answer("m", 0, [np.ones_like(flat)]), COUNTED, PANELS, LOG1P_CP10K)
    assert (nothing["core 10"], nothing["global all"], nothing["core undefined"]) == (None, None, 12)


def test_several_predictions_are_scored_one_by_one_and_averaged():
    both = score_answer(Answer("m", 0, [PREDICTED, COUNTED]), COUNTED, PANELS, LOG1P_CP10K)
    one = score_answer(Answer("m", 0, [PREDICTED]), COUNTED, PANELS, LOG1P_CP10K)
    assert both["global 50"] == pytest.approx((one["global 50"] + 1) / 2)


def test_what_is_not_predicted_has_no_score():
    core = score_answer(Answer("m", 0, [PREDICTED], genes="core"), COUNTED, PANELS, LOG1P_CP10K)
    none = score_answer(Answer("m", 0, []), COUNTED, PANELS, LOG1P_CP10K)
    assert core["core 10"] is not None
    assert {v for k, v in core.items() if k.startswith("global")} == {None} == set(none.values())
    assert set(core) == set(none)


# Leaks, planted.


@pytest.fixture(scope="module")
def leaky(tmp_path_factory):
    """A, B and C of P1, P2 and P3; X, which is C shuffled, cut down, of P9 and without three genes; D of P1.

    Its anchors are a list that was chosen with C in sight.
    """
    home = tmp_path_factory.mktemp("leaky")
    a, b, c, d = (make.draw(n, p, side=5, spread=0.7) for n, p in zip("ABCD", ("P1", "P2", "P3", "P1"), strict=True))
    statistics = stored_statistics([make.Held(one) for one in (a, b, c)], LOG1P_CP10K)
    panel = core_panel(make.GENES, statistics, 12)
    lacking = ~np.isin(np.arange(make.N_GENES), np.setdiff1d(np.arange(make.N_GENES), panel)[:3])
    x = c.rows(RNG.permutation(25)[:18]).but(name="X", patient="P9", measured=lacking)
    (home / "panel.txt").write_text("\n".join(make.GENES[panel]) + "\n")
    return make.write_bank(home / "b", [a, b, c, x, d], AnchorOptions(file=home / "panel.txt"))


def kinds(bank, train, test):
    number = {s["name"]: i for i, s in enumerate(bank.sections)}
    found = look_for_leaks(bank, Held("x", tuple(number[n] for n in train), tuple(number[n] for n in test)))
    return {leak.kind: leak for leak in found}


def test_a_test_section_planted_under_another_name_and_patient_is_named(leaky):
    found = kinds(leaky, "ABX", "C")
    assert found["section"].sections == ("C", "X")
    assert found["section"].share == 1
    assert "test section C (patient P3) stands in the bank as bank section X (patient P9)" in found["section"].text
    assert found["patient"].patients == ("P3", "P9")
    assert next(iter(found)) == "section"


def test_a_patient_under_two_names_is_found_among_training_sections_too(leaky):
    found = kinds(leaky, "BCX", "A")
    assert (found["patient"].sections, found["patient"].patients) == (("C", "X"), ("P3", "P9"))
    assert "section" not in found


def test_a_patient_on_both_sides_is_named(leaky):
    found = kinds(leaky, "AB", "D")
    assert (found["same-patient"].sections, found["same-patient"].patients) == (("D", "A"), ("P1",))
    assert not {"section", "patient"} & set(found)


def test_a_list_of_anchors_that_was_chosen_with_the_test_section_is_named(leaky):
    found = kinds(leaky, "AB", "C")
    assert set(found) == {"panel"}
    assert (
        "The panel of 12 genes is what recipe corrected chooses with the test sections in sight" in found["panel"].text
    )


def test_a_list_that_was_chosen_without_the_test_section_is_no_leak():
    sections = [make.Held(make.draw(n, n, side=5, spread=0.7)) for n in "ABC"]
    chosen = make.GENES[core_panel(make.GENES, stored_statistics(sections[:2], LOG1P_CP10K), 12)]
    assert judge_listed_panel(chosen, sections[:2], sections[2:], make.GENES) is None
    with_test = make.GENES[core_panel(make.GENES, stored_statistics(sections, LOG1P_CP10K), 12)]
    assert set(with_test) != set(chosen)
    assert judge_listed_panel(with_test, sections[:2], sections[2:], make.GENES).kind == "panel"
