"""Sampling from a diffusion model that predicts noise and a variance within a learned range.

Knows the linear schedule, how steps are left out of it, the ancestral sampler, and noise that belongs to a spot. Knows
no network. Equations: Ho et al. 2020 (arXiv 2006.11239) and Nichol and Dhariwal 2021 (arXiv 2102.09672), as in
OpenAI's guided-diffusion and facebookresearch/DiT, which Stem samples with.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from genrag_cli.types import Floats, Ints

TRAINED_STEPS = 1000
_BETA_FIRST, _BETA_LAST = 1e-4, 0.02


def keep_steps(kept: int, trained: int = TRAINED_STEPS) -> Ints:
    """Which timesteps a shorter chain takes: evenly spaced from the first to the last, rounded.

    Args:
        kept: how many, 2 to `trained`.
        trained: how many there are.

    Returns:
        (kept,) ascending.
    """
    stride = (trained - 1) / (kept - 1)
    at, steps = 0.0, []
    for _ in range(kept):  # added up rather than multiplied: the published code's rounding falls as its sums do
        steps.append(round(at))
        at += stride
    return np.array(steps, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Schedule:
    """Factors of every step of a chain, first step (the least noise) first; computed in float64."""

    timesteps: Ints
    """(T,) what the network is told."""
    clean_from_noisy: NDArray[np.float64]
    clean_from_noise: NDArray[np.float64]
    """(T,) x_0 = clean_from_noisy * x_t - clean_from_noise * noise."""
    mean_from_clean: NDArray[np.float64]
    mean_from_noisy: NDArray[np.float64]
    """(T,) mean of x_(t-1) = mean_from_clean * x_0 + mean_from_noisy * x_t."""
    log_least: NDArray[np.float64]
    log_most: NDArray[np.float64]
    """(T,) logarithms of the least variance (the posterior's) and of the largest (beta)."""

    def __len__(self) -> int:
        return len(self.timesteps)

    @staticmethod
    def linear(kept: int = TRAINED_STEPS) -> "Schedule":
        """Betas from 1e-4 to 0.02 over 1000 steps, of which `kept` (2 at least) are taken.

        A step over several has the beta that leads from the one product of alphas to the other.
        """
        steps = keep_steps(kept)
        product = np.cumprod(1 - np.linspace(_BETA_FIRST, _BETA_LAST, TRAINED_STEPS))[steps]
        betas = 1 - product / np.append(1.0, product[:-1])
        product = np.cumprod(1 - betas)
        before = np.append(1.0, product[:-1])
        variance = betas * (1 - before) / (1 - product)
        return Schedule(
            timesteps=steps,
            clean_from_noisy=np.sqrt(1 / product),
            clean_from_noise=np.sqrt(1 / product - 1),
            mean_from_clean=betas * np.sqrt(before) / (1 - product),
            mean_from_noisy=(1 - before) * np.sqrt(1 - betas) / (1 - product),
            log_least=np.log(np.append(variance[1], variance[1:])),  # the first one's is 0
            log_most=np.log(betas),
        )


def sample(
    network: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    schedule: Schedule,
    draw: Callable[[], torch.Tensor],
    told: Callable[[int], None] = lambda _: None,
) -> torch.Tensor:
    """Goes down the chain, a random step at a time; x_0 is not clipped on the way.

    Args:
        network: (x (b, G), timesteps (b,)) to (b, 2, G), the noise and where the variance's logarithm lies between
            the least (-1) and the most (1).
        schedule: of the chain.
        draw: standard normal numbers (b, G); called once for the start and once a step but the last.
        told: after each step, how many are done.

    Returns:
        (b, G).
    """
    x = draw()
    for done, i in enumerate(reversed(range(len(schedule))), start=1):
        t = torch.full((len(x),), int(schedule.timesteps[i]), device=x.device)
        noise, place = network(x, t).float().unbind(1)
        clean = float(schedule.clean_from_noisy[i]) * x - float(schedule.clean_from_noise[i]) * noise
        x = float(schedule.mean_from_clean[i]) * clean + float(schedule.mean_from_noisy[i]) * x
        if i > 0:
            share = (place + 1) / 2
            log_variance = share * float(schedule.log_most[i]) + (1 - share) * float(schedule.log_least[i])
            x = x + torch.exp(0.5 * log_variance) * draw()
        told(done)
    return x


class SpotNoise:
    """Standard normal numbers that depend on a seed, a spot's own condition and a replicate, and on nothing else.

    So a spot's samples are the same whichever spots are sampled with it, in which order and in which batches. Two
    spots with one condition, bit for bit, share their noise, and have one prediction.
    """

    def __init__(self, seed: int, conditions: Floats, replicates: Ints) -> None:
        """Starts one generator a row.

        Args:
            seed: of the run.
            conditions: (b, c).
            replicates: (b,) 0 for the first sample of a spot.
        """
        rows = np.ascontiguousarray(conditions, "<f4")
        self._generators = [
            np.random.Generator(np.random.Philox(key=_key(seed, int(replicate), row.tobytes())))
            for row, replicate in zip(rows, replicates, strict=True)
        ]

    def draw(self, n: int) -> Floats:
        """The next (b, n) float32."""
        out = np.empty((len(self._generators), n), np.float32)
        for row, generator in zip(out, self._generators, strict=True):
            generator.standard_normal(dtype=np.float32, out=row)
        return out


def _key(seed: int, replicate: int, condition: bytes) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {replicate} ".encode() + condition).digest()[:16], "little")
