"""First guesses that no head makes: the scale where bank and query meet, and genes that one side lacks."""

import dataclasses

import numpy as np
import pytest

from genrag_cli.errors import BackboneError
from genrag_cli.pipeline.anchor_space import AnchorSpace, Guessed, bring, expect_convertible
from genrag_cli.stores.bank import Bank
from genrag_cli.types import COUNTS, LN_COUNTS, LOG1P_CP10K, LOG2_COUNTS, Expression, Scale

PANEL = Scale(library="panel", size_factor=1e4, log="log10")
SMOOTH = Scale(library="panel", size_factor=1e4, log="ln", smooth=True)
GUESSED = np.array([f"G{i}" for i in (7, 3, 40, 12, 0)])


@pytest.fixture
def bank(built, made_up):
    return Bank.open(built("AB"), made_up.CARD.name)


def settle(bank, guessed, scale=COUNTS, *, anchor_scale="bank", drop_missing=False, own_anchors=False):
    return AnchorSpace.settle(
        bank, guessed, scale, anchor_scale=anchor_scale, drop_missing=drop_missing, own_anchors=own_anchors
    )


def in_scale(made_up, name, scale):
    """The five genes of a section by hand, the library summed over these five."""
    counts = made_up.draw(name)[0].toarray()[:, [7, 3, 40, 12, 0]].astype(float)
    library = counts.sum(1, keepdims=True)
    values = 1e4 * np.divide(counts, library, out=np.zeros_like(counts), where=library > 0)
    return np.log10(1 + values) if scale.log == "log10" else np.log(1 + values)


def test_panel_library_is_summed_over_the_guessed_genes(bank, made_up):
    space = settle(bank, Guessed("m", GUESSED, PANEL), anchor_scale="model")
    found = list(space.rows(bank))
    for values, name in zip(found, "AB", strict=True):
        np.testing.assert_allclose(values, in_scale(made_up, name, PANEL), rtol=1e-5)
    mean, sd = space.statistics(bank)
    together = np.concatenate([in_scale(made_up, name, PANEL) for name in "AB"])
    np.testing.assert_allclose(mean, together.mean(0), rtol=1e-5)
    np.testing.assert_allclose(sd, together.std(0), rtol=1e-4)


def test_smoothed_scale_averages_over_lattice_neighbours(bank, made_up):
    space = settle(bank, Guessed("m", GUESSED, SMOOTH), anchor_scale="model")
    values = next(iter(space.rows(bank)))
    plain = in_scale(made_up, "A", SMOOTH)
    rc = np.round(np.random.default_rng(1).uniform(0, 1000, (70, 2))).astype(int)
    near = (np.abs(rc[:, None] - rc[None]).max(-1) <= 1).astype(float)
    np.testing.assert_allclose(values, near @ plain / near.sum(1, keepdims=True), rtol=1e-5)


def test_stored_statistics_serve_for_a_scale_that_banks_have(bank):
    space = settle(bank, Guessed("m", GUESSED, LOG2_COUNTS))
    assert space.scale == COUNTS
    together = np.concatenate(list(space.rows(bank)))
    np.testing.assert_allclose(space.statistics(bank)[0], together.mean(0), rtol=1e-5)
    np.testing.assert_allclose(space.statistics(bank)[1], together.std(0), rtol=1e-4)


def test_log2_of_counts_comes_to_counts_and_below_0_is_counted():
    values = np.array([[0, 1, -0.5], [3, 2, 0]], np.float32)
    guess = Expression(values, np.array(["a", "b"]), np.array(["x", "y", "z"]), LOG2_COUNTS)
    brought, below = bring(guess, COUNTS)
    np.testing.assert_allclose(brought.values, [[0, 1, 0], [7, 3, 0]], atol=1e-6)
    assert (brought.scale, below) == (COUNTS, 1)


def test_guess_in_the_banks_scale_is_left_as_it_is():
    guess = Expression(np.array([[-1.5]], np.float32), np.array(["a"]), np.array(["x"]), COUNTS)
    assert bring(guess, COUNTS) == (guess, 0)


OTHERS = [LOG2_COUNTS, LN_COUNTS, PANEL, SMOOTH, dataclasses.replace(LOG1P_CP10K, smooth=True)]


@pytest.mark.parametrize("source", OTHERS)
def test_scales_without_a_way_are_refused_naming_both(source):
    with pytest.raises(BackboneError, match=f"in scale {source.name}, the bank's anchors are in log1p_cp10k") as caught:
        expect_convertible("backbone stem", source, LOG1P_CP10K)
    assert "--anchor-scale model" in caught.value.hint
    assert ("--preset paper" in caught.value.hint) == (source.library == "none")


def test_panel_scale_does_not_even_come_to_counts():
    with pytest.raises(BackboneError, match="log10-panel-10000"):
        expect_convertible("backbone histogene", PANEL, COUNTS)


def test_genes_that_the_bank_lacks_are_refused_or_left_out_on_request(bank):
    guessed = Guessed("p.h5ad", np.append(GUESSED, "ELSEWHERE"), COUNTS)
    with pytest.raises(BackboneError, match=r"1 of 6 genes .*ELSEWHERE") as caught:
        settle(bank, guessed)
    assert "--drop-missing-anchors" in caught.value.hint
    space = settle(bank, guessed, drop_missing=True)
    assert (space.genes.tolist(), space.dropped) == (GUESSED.tolist(), ("ELSEWHERE",))


def test_model_that_does_not_predict_the_banks_anchors_is_refused(bank):
    with pytest.raises(BackboneError, match="does not predict"):
        settle(bank, Guessed("backbone m", np.array(["G1"]), COUNTS), own_anchors=True)
