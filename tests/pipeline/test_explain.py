"""The terms of a value: they add up to what `reconstruct` gives, in every form of it."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from genrag_cli.genes.scales import to_scale
from genrag_cli.outputs import keys
from genrag_cli.pipeline.explain import picture_path
from genrag_cli.pipeline.query_space import bank_blocks
from genrag_cli.pipeline.tuning.settings import Settings
from genrag_cli.pipeline.tuning.tuning import Tuning
from genrag_cli.pipeline.value_terms import FILLER, MEAN, REGRESSION, Formula
from genrag_cli.reconstruction import MIN_SHARE, Presence, reconstruct
from genrag_cli.types import COUNTS, LOG1P_CP10K, SparseCodes

ALL = np.arange(60)
LACKING = np.array([3, 17])
"""Genes that the last of three sections did not measure."""
KINDS = {"untuned": (True, None), "paper": (False, None), "tuned": (True, 0.25)}
"""Whether values are centred, and the share of the references where a regression speaks too."""


@pytest.fixture(scope="module")
def banks(made_up, tmp_path_factory):
    """A bank that lacks nothing, and one whose section D lacks two genes."""
    folder = tmp_path_factory.mktemp("explain")
    measured = ~np.isin(ALL, LACKING)
    return {
        False: made_up.versions(made_up.make(folder / "whole.zarr", "ABD")),
        True: made_up.versions(made_up.make(folder / "gaps.zarr", "ABD", D=measured)),
    }


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["whole", "gaps"])
def case(request, banks, kind):
    """A bank, a tuning, scale and form, 6 spots with weights, and what `reconstruct` says of all genes."""
    bank, (centred, share), rng = banks[request.param], KINDS[kind], np.random.default_rng(4)
    scale = LOG1P_CP10K if centred else COUNTS
    dense = np.zeros((6, bank.n_spots), np.float32)
    for row, section in enumerate(("A", "B", "D", "ABD", "AD", "")):  # the last spot has no reference
        near = np.flatnonzero(np.isin(bank.section_of, list(section)))
        some = rng.choice(near, min(len(near), 9), replace=False)
        dense[row, some] = rng.uniform(0.01, 0.2, len(some))
    mean, scores, tuning = bank.derived[f"genes/{scale.name}/mean"], rng.normal(size=(6, 3)).astype(np.float32), None
    if share is not None:
        coef = rng.normal(size=(4, 60)).astype(np.float32)
        tuning = Tuning(1, Settings(share=share), {"regression/coef": coef}, {"key": "k"})
    codes = codes_of(dense)
    section_of = np.repeat(np.arange(3), [s["n_spots"] for s in bank.sections])
    ((values, present),) = reconstruct(
        codes, bank_blocks(bank, ALL, scale), 60, mean if centred else None,
        Presence.of(bank.measured, section_of, mean), None if tuning is None else tuning.blend(scores, bank, ALL),
    )  # fmt: skip
    stored = SimpleNamespace(
        about={"centred": centred}, codes=codes, expression=SimpleNamespace(scale=scale),
        obsm={keys.COMPONENTS: scores},
    )  # fmt: skip
    return SimpleNamespace(
        bank=bank, tuning=tuning, stored=stored, values=values,
        present=np.ones_like(values, bool) if present is None else present, mean=mean, gaps=request.param, scale=scale,
    )  # fmt: skip


def codes_of(dense):
    n, rows = len(dense), [np.flatnonzero(row) for row in dense]
    return SparseCodes(
        np.cumsum([0, *map(len, rows)]), np.concatenate(rows).astype(np.int32),
        np.concatenate([d[r] for d, r in zip(dense, rows, strict=True)]), dense.shape[1], np.zeros(n),
        np.zeros(n, np.float32), np.full(n, "solved"),
    )  # fmt: skip


def explain(case, row, chosen=ALL):
    codes = case.stored.codes.rows(slice(row, row + 1))
    formula = Formula.of(case.stored, case.bank, case.tuning, row, chosen)
    return formula.terms(codes.indices.astype(np.int64), codes.weights.astype(np.float64))


def test_terms_add_up_to_the_predicted_values(case):
    for row in range(6):
        terms = explain(case, row)
        np.testing.assert_allclose(terms.total, case.values[row], rtol=2e-6, atol=2e-6)
        np.testing.assert_array_equal(terms.present, case.present[row])
    assert case.present.all() != case.gaps


def test_terms_do_not_depend_on_which_other_genes_are_asked_for(case):
    few = explain(case, 3, np.array([17, 40]))
    np.testing.assert_array_equal(few.contributions, explain(case, 3).contributions[:, [17, 40]])
    np.testing.assert_array_equal(few.total, explain(case, 3).total[[17, 40]])


def test_the_base_is_named_by_its_form(case, kind):
    base = [name for name, _ in explain(case, 2).base]
    assert base == {
        "untuned": [MEAN], "paper": [FILLER] if case.gaps else [], "tuned": [MEAN, REGRESSION],
    }[kind]  # fmt: skip


def test_a_reference_adds_its_weight_times_what_it_measured_beyond_the_mean(case, kind):
    codes, terms = case.stored.codes.rows(slice(3, 4)), explain(case, 3)
    expected = np.concatenate([to_scale(c, t, case.scale).toarray() for _, c, t in case.bank.count_blocks()])
    own, gene = expected[codes.indices, 40].astype(float), 40
    np.testing.assert_array_equal(terms.measured[:, gene], own)
    centre, share = (0 if kind == "paper" else case.mean[gene]), (0.25 if kind == "tuned" else 1)
    np.testing.assert_allclose(terms.contributions[:, gene], share * codes.weights * (own - centre), rtol=1e-6)


@pytest.mark.parametrize("case", [True], indirect=True, ids=["gaps"])
def test_references_without_the_gene_add_nothing_and_the_others_make_up_for_it(case, kind):
    codes, terms = case.stored.codes.rows(slice(4, 5)), explain(case, 4)
    lacks = case.bank.section_of[codes.indices] == "D"
    assert np.isnan(terms.measured[lacks][:, LACKING]).all()
    assert not terms.contributions[lacks][:, LACKING].any()
    size = codes.weights.astype(float)
    factor = size.sum() / size[~lacks].sum()
    assert factor < 1 / MIN_SHARE
    centre = 0 if kind == "paper" else case.mean[17]  # no regression for such a gene: its share is 1
    wanted = factor * size[~lacks] * (terms.measured[~lacks, 17] - centre)
    np.testing.assert_allclose(terms.contributions[~lacks, 17], wanted, rtol=1e-6)


@pytest.mark.parametrize("case", [True], indirect=True, ids=["gaps"])
def test_a_missing_value_is_the_mean_alone(case):
    terms = explain(case, 2)
    assert not terms.present[LACKING].any()
    assert not terms.contributions[:, LACKING].any()
    np.testing.assert_array_equal(terms.total[LACKING], case.mean[LACKING])


def test_a_spot_without_references_has_base_terms_only(case, kind):
    terms = explain(case, 5)
    assert terms.contributions.shape == (0, 60)
    if kind != "tuned":
        np.testing.assert_array_equal(terms.total, 0 if kind == "paper" else case.mean)


def test_the_picture_of_a_spot_has_a_name_that_every_file_system_takes():
    assert picture_path(Path("p/C3.lite0.h5ad"), "C3:5_10").name == "C3.lite0.C3_5_10.png"
    assert picture_path(Path("p/C3.lite0.zarr"), "a/b c").name == "C3.lite0.a_b_c.png"
