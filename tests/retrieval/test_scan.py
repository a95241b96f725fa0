"""Passes: what they keep is what wants in most, and what they leave out stays below the bound that they give."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrag_cli.retrieval import pools
from genrag_cli.retrieval import scan as module
from genrag_cli.retrieval.atoms import HeldAtoms, StreamedAtoms
from genrag_cli.retrieval.scan import Scan, fast_precision

PRECISIONS = ("bfloat16", "float32")
KINDS = ("plain", "shared mean", "huge", "tiny", "underflowing", "lengths", "duplicates", "zeros")
N, M, Q = 300, 96, 6


@pytest.fixture(scope="module", params=["compiled", "torch"], autouse=True)
def either_engine(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pools, "engine", lambda _: request.param)
        yield


@pytest.fixture
def filled_memory():
    """Memory that nothing was written to holds NaN, or the largest number, and not by luck what was meant."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def bank(kind, n=N, m=M, seed=0):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, m))
    if kind == "shared mean":
        rows = 0.1 * rows + rng.gamma(2, 3, m)
    if kind == "lengths":
        rows *= 10.0 ** rng.uniform(-3, 3, (n, 1))
    if kind == "duplicates":
        rows = rows[rng.integers(0, 20, n)]
    if kind == "zeros":
        rows[rng.random(n) < 0.6] = 0
    scale = {"huge": 1e15, "tiny": 1e-15, "underflowing": 2e-20}.get(kind, 1.0)
    return (scale * rows).astype(np.float32)


def residuals_of(rows, seed=1, q=Q):
    rng = np.random.default_rng(seed)
    mixed = (rng.random((q, len(rows))) < 5 / len(rows)).astype(float) @ rows.astype(float)
    size = np.abs(rows).astype(np.float64).max()
    return torch.from_numpy(mixed + size * rng.normal(size=mixed.shape))


def thresholds_of(rows, residual, nonnegative, quantile):
    c = residual.numpy() @ rows.astype(np.float64).T
    return torch.from_numpy(np.quantile(c if nonnegative else np.abs(c), quantile, axis=1).clip(0)).float()


def true_scores(scan, rows, residual, l1, nonnegative):
    c = residual @ torch.from_numpy(rows).double().T
    return ((c if nonnegative else c.abs()) - l1.double()[:, None]) * scan._inverse.double()


def largest_outside(scan, rows, look, residual, l1, nonnegative):
    scores = true_scores(scan, rows, residual, l1, nonnegative)
    return scores.scatter_(1, look.index, -torch.inf).amax(1)


def assert_bounded(rows, precision, nonnegative, *, quantile=0.9, k=7, seed=1, moved=(0.0, 1e-6, 1e-3, 0.1, 3.0, -0.1)):
    scan = Scan(HeldAtoms(torch.from_numpy(rows)), precision=precision)
    residual = residuals_of(rows, seed)
    l1 = thresholds_of(rows, residual, nonnegative, quantile)
    look = scan.look(residual, l1, nonnegative, k)
    assert bool((largest_outside(scan, rows, look, residual, l1, nonnegative) <= look.edge + look.margin).all())
    anywhere = torch.randn(Q, M, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for direction in (anywhere, scan._centre.double().expand(Q, M)):
        unit = residual.norm(dim=1, keepdim=True) * torch.nn.functional.normalize(direction, dim=1, eps=1e-300)
        for size in moved:
            top = largest_outside(scan, rows, look, residual + size * unit, l1, nonnegative)
            assert bool((top <= scan.ceiling(look, size * unit, nonnegative)).all())


@pytest.mark.parametrize("nonnegative", [True, False])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_atom_that_is_left_out_is_above_its_bound(kind, precision, nonnegative):
    for quantile in (0.0, 0.9, 1.0):
        assert_bounded(bank(kind), precision, nonnegative, quantile=quantile)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10**6), st.integers(2, 120), st.integers(1, 60), st.floats(0, 1), st.sampled_from(PRECISIONS),
    st.booleans(), st.floats(-12, 12), st.floats(0, 5),
)  # fmt: skip
def test_the_bound_holds_for_any_bank(seed, n, k, quantile, precision, nonnegative, scale, mean):
    rng = np.random.default_rng(seed)
    rows = (10**scale * (rng.normal(size=(n, M)) + mean * rng.normal(size=M))).astype(np.float32)
    assert_bounded(rows, precision, nonnegative, quantile=quantile, k=k, seed=seed)


def rounded_away(nonnegative):
    """An atom that wants in, though its bfloat16 product is 2^-7 too small; one that is kept; a residual.

    Each value of the first, 1 + 2^-8, is halfway between two bfloat16 and goes to 1; so is the product 257, which goes
    to 256. All of it is lost in one direction, and l1 lies between what is true (258.004) and what was computed.
    """
    rng = np.random.default_rng(0)
    signs = np.where(rng.random(257) < 0.5, -1.0, 1.0)
    hidden, kept = np.append((1 + 2.0**-8) * signs, 0), np.append(signs, 8)
    others = np.where(rng.random((20, 258)) < 0.5, -1.0, 1.0)
    rows = np.concatenate([[hidden], [kept], others]).astype(np.float32)
    rows = np.concatenate([rows, -rows]) if nonnegative else rows
    return rows, torch.from_numpy(np.append(signs, 0))[None], torch.tensor([257.9])


@pytest.mark.parametrize("nonnegative", [True, False])
def test_an_atom_that_bfloat16_hides_is_not_said_to_stay_out(nonnegative):
    rows, residual, l1 = rounded_away(nonnegative)
    scan = Scan(HeldAtoms(torch.from_numpy(rows)), precision="bfloat16")
    look = scan.look(residual, l1, nonnegative, 1)
    assert 0 not in look.index
    assert float(true_scores(scan, rows, residual, l1, nonnegative)[0, 0]) > 0
    assert float(scan.ceiling(look, torch.zeros_like(residual), nonnegative)) > 0
    top = largest_outside(scan, rows, look, residual, l1, nonnegative)
    assert float(top) <= float(look.edge + look.margin)


def test_a_bfloat16_pass_misranks_and_an_exact_one_does_not():
    rows, residual, l1 = rounded_away(True)
    scan = Scan(HeldAtoms(torch.from_numpy(rows)), precision="bfloat16")
    assert scan.look(residual, l1, True, 1).index.item() == 1
    exact = scan.look(residual, l1, True, 1, exactly=True)
    assert exact.index.item() == 0
    assert float(exact.margin) < 1e-2 * float(scan.look(residual, l1, True, 1).margin)


@pytest.mark.parametrize("nonnegative", [True, False])
@pytest.mark.parametrize("kind", ["plain", "shared mean", "lengths"])
def test_a_float32_pass_keeps_the_atoms_that_want_in_most(kind, nonnegative):
    rows = bank(kind)
    scan = Scan(HeldAtoms(torch.from_numpy(rows)), precision="float32")
    residual = residuals_of(rows)
    l1 = thresholds_of(rows, residual, nonnegative, 0.9)
    look = scan.look(residual, l1, nonnegative, 9)
    scores = true_scores(scan, rows, residual, l1, nonnegative)
    kept = scores.gather(1, look.index)
    assert bool(((kept - look.score).abs() <= look.margin[:, None]).all())
    assert bool((kept >= scores.topk(9, dim=1).values[:, -1:] - 2 * look.margin[:, None]).all())
    assert all(len(set(index)) == 9 for index in look.index.tolist())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_pass_in_blocks_keeps_what_one_block_keeps(monkeypatch, precision):
    rows = bank("plain")
    residual = residuals_of(rows)
    l1 = thresholds_of(rows, residual, True, 0.9)
    scan = Scan(HeldAtoms(torch.from_numpy(rows)), precision=precision)
    whole = scan.look(residual, l1, True, 40)
    monkeypatch.setattr(module, "COLUMNS", 32)
    parts = scan.look(residual, l1, True, 40)
    assert bool(((whole.score - parts.score).abs() <= 2 * whole.margin[:, None]).all())
    assert bool(((whole.edge - parts.edge).abs() <= 2 * whole.margin).all())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_where_every_atom_is_kept_nothing_is_outside(precision):
    rows = bank("plain", n=12)
    scan = Scan(HeldAtoms(torch.from_numpy(rows)), precision=precision)
    look = scan.look(residuals_of(rows), torch.ones(Q), True, 50)
    assert all(sorted(index) == list(range(12)) for index in look.index.tolist())
    assert bool(scan.ceiling(look, residuals_of(rows, 2), True).isneginf().all())


@pytest.mark.parametrize("nonnegative", [True, False])
@pytest.mark.parametrize(("rows", "residual", "l1"), [(0.0, 1.0, 1e9), (1e18, 1e21, 1.0), (1.0, 1.0, 1e38)])
def test_scores_that_overflow_are_of_atoms_that_exist(filled_memory, rows, residual, l1, nonnegative):
    scan = Scan(HeldAtoms(torch.from_numpy(rows * bank("plain")).float()), precision="float32")
    look = scan.look(residual * residuals_of(bank("plain")), torch.full((Q,), l1), nonnegative, 100)
    assert look.index.shape == (Q, 100)
    assert bool(((look.index >= 0) & (look.index < N)).all())


@pytest.mark.parametrize("kind", KINDS)
def test_no_atom_is_farther_from_the_centre_than_its_measure_says(kind):
    rows = bank(kind, n=500, m=400)
    scan = Scan(HeldAtoms(torch.from_numpy(rows)), precision="float32")
    far = (torch.from_numpy(rows).double() - scan._centre.double()).norm(dim=1)
    assert bool((far * scan._inverse.double() <= 1).all())


@pytest.mark.parametrize("streams", [True, False])
def test_the_sub_bank_is_spread_over_the_bank(monkeypatch, streams):
    monkeypatch.setattr(module, "SUB_BANK", 40)
    rows = bank("plain")
    held = HeldAtoms(torch.from_numpy(rows))
    scan = Scan(StreamedAtoms(N, M, lambda low, high: rows[low:high], block=41) if streams else held)
    assert len(scan.sub_index) == scan.sub.n >= 40
    assert torch.equal(scan.sub.rows, held.rows[scan.sub_index])
    assert scan.sub_index.diff().unique().numel() == 1


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_spot_of_the_sub_bank_is_nearest_to_itself_whatever_the_shared_mean(precision):
    rows = bank("shared mean") if precision == "float32" else bank("plain")
    scan = Scan(HeldAtoms(torch.from_numpy(rows)), precision=precision)
    near = scan.nearest(scan.sub.rows[5:25], 3)
    assert near[:, 0].tolist() == list(range(5, 25))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_scan_knows_that_a_value_is_not_finite(wrong):
    rows = bank("plain")
    assert Scan(HeldAtoms(torch.from_numpy(rows))).finite
    rows[200, 3] = wrong
    assert not Scan(HeldAtoms(torch.from_numpy(rows))).finite


def test_machines_that_do_not_multiply_bfloat16_get_float32(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    assert fast_precision(torch.device("cpu")) == "float32"
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert fast_precision(torch.device("cpu")) == "float32"
    assert fast_precision(torch.device("mps")) == "float32"
