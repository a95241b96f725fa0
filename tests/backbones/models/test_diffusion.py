"""The ancestral sampler against the equations of the papers, written out in float64."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from genrag_cli.backbones.models.diffusion import Schedule, SpotNoise, keep_steps, sample

B, GENES = 3, 5
Network = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def small_network() -> tuple[Network, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]:
    """One network twice: in float64 numpy (noise, place of the variance), and in float32 torch (b, 2, G)."""
    rng = np.random.default_rng(0)
    mix, place = rng.normal(size=(GENES, GENES)) / 3, rng.normal(size=(GENES, GENES)) / 3

    def plain(x: np.ndarray, t: int) -> tuple[np.ndarray, np.ndarray]:
        return 0.9 * np.tanh(x @ mix + t / 1000), np.tanh(x @ place - t / 1000)

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        late = t[:, None].float() / 1000
        noise = 0.9 * torch.tanh(x @ torch.tensor(mix).float() + late)
        return torch.stack([noise, torch.tanh(x @ torch.tensor(place).float() - late)], 1)

    return plain, network


def by_hand(network: Network, steps: list[int], noise: np.ndarray) -> np.ndarray:
    """Algorithm 2 and equation 11 of Ho et al., the variance as in equation 15 of Nichol and Dhariwal.

    noise (T, b, G): the start, then that of each step but the last.
    """
    kept = np.array([np.prod(1 - np.linspace(0.0001, 0.02, 1000)[: t + 1]) for t in steps])
    x = noise[0].astype(np.float64)
    for i in range(len(steps) - 1, -1, -1):
        before = kept[i - 1] if i else 1.0
        alpha = kept[i] / before
        beta = 1 - alpha
        predicted, v = network(x, steps[i])
        x = (x - beta / np.sqrt(1 - kept[i]) * predicted) / np.sqrt(alpha)
        if i:
            posterior = (1 - before) / (1 - kept[i]) * beta
            share = (v + 1) / 2
            variance = np.exp(share * np.log(beta) + (1 - share) * np.log(posterior))
            x = x + np.sqrt(variance) * noise[len(steps) - i]
    return x


@pytest.mark.parametrize("kept", [2, 3, 10, 250, 1000])
def test_sampler_is_the_published_chain(kept: int) -> None:
    plain, network = small_network()
    steps = keep_steps(kept)
    noise = np.random.default_rng(kept).normal(size=(kept, B, GENES)).astype(np.float32)
    drawn = iter(noise)
    told: list[int] = []
    found = sample(network, Schedule.linear(kept), lambda: torch.from_numpy(next(drawn)), told.append)
    wanted = by_hand(plain, steps.tolist(), noise)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())
    assert next(drawn, None) is None, "one start, and noise for every step but the last"
    assert told == list(range(1, kept + 1))


def test_variance_of_the_first_step_has_the_second_ones_floor() -> None:
    schedule = Schedule.linear()
    assert np.isfinite(schedule.log_least).all()
    assert schedule.log_least[0] == schedule.log_least[1]
    assert (schedule.log_least[1:] < schedule.log_most[1:]).all()


def test_kept_steps_are_evenly_spaced_and_have_both_ends() -> None:
    assert keep_steps(1000).tolist() == list(range(1000))
    assert keep_steps(4).tolist() == [0, 333, 666, 999]
    assert keep_steps(5).tolist() == [0, 250, 500, 749, 999]  # 499.5 goes to the even number, as Python's round does
    for kept in (2, 99, 250, 501, 999):
        steps = keep_steps(kept)
        assert len(np.unique(steps)) == kept
        assert (steps[0], steps[-1]) == (0, 999)


def test_noise_belongs_to_a_spot_and_a_replicate() -> None:
    conditions = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    rows = np.array([0, 1, 2, 3, 0])
    replicates = np.array([0, 0, 0, 0, 1])
    noise = SpotNoise(7, conditions[rows], replicates)
    first, second = noise.draw(1000), noise.draw(1000)
    backwards = SpotNoise(7, conditions[rows[::-1]], replicates[::-1])
    np.testing.assert_array_equal(backwards.draw(1000), first[::-1])
    alone = SpotNoise(7, conditions[2:3], np.array([0]))
    np.testing.assert_array_equal(np.stack([alone.draw(1000)[0], alone.draw(1000)[0]]), [first[2], second[2]])
    seen = [*first, *second, *SpotNoise(8, conditions[rows], replicates).draw(1000)]
    assert np.abs(np.corrcoef(seen) - np.eye(len(seen))).max() < 0.2
    assert np.abs(np.mean(seen)) < 0.03
    assert np.abs(np.std(seen) - 1) < 0.03
