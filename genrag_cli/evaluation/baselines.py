"""Predictions that know less than the method: shuffled spots, the bank's mean, library size.

They return arrays in the shape of a prediction, to be scored by the same functions.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from genrag_cli.types import Doubles, Scale

N_SHUFFLES = 10


def shuffle_spots(
    prediction: NDArray[np.floating],
    *,
    seed: int = 0,
    times: int = N_SHUFFLES,
    present: NDArray[np.bool_] | None = None,
) -> Iterator[NDArray[np.floating]]:
    """The prediction with whole spots permuted: the chance level of PCC-k, all genes and their spread kept.

    Args:
        prediction: (n, G).
        present: (n, G) False where a value is missing and holds a filler. Fillers stay where they are: the other values
            of a gene change places among themselves, in the order of the permutation.
        seed: equal seeds give equal permutations.
        times: how many permutations; a score is averaged over them.

    Yields:
        (n, G) arrays.
    """
    random = np.random.default_rng(seed)
    for _ in range(times):
        turned = random.permutation(len(prediction))
        shuffled = prediction[turned]
        if present is not None:
            others, shuffled = shuffled.T[present[turned].T], prediction.copy()
            shuffled.T[present.T] = others
        yield shuffled


def repeat_mean(mean: ArrayLike, n: int) -> Doubles:
    """The mean profile at every spot: (n, G). Its correlations are undefined, its MSE is the floor to beat."""
    profile = np.asarray(mean, dtype=np.float64)
    return np.broadcast_to(profile, (n, len(profile))).copy()


def spread_library(mean: ArrayLike, mean_total: float, total_counts: Doubles, scale: Scale) -> Doubles | None:
    """The spot's true library size shared out by the mean profile: depth alone, no biology.

    In counts, spot i gets `total_counts[i] * mean / mean_total`. A scale that is normalised by library size divides it
    out again, which leaves the mean profile at every spot.

    Args:
        mean: (G,) mean over the bank in `scale`, of the genes wanted.
        mean_total: its sum over all genes of the bank.
        total_counts: (n,) measured counts of the spots over all genes.
        scale: the scale of `mean` and of the result.

    Returns:
        (n, G); None for logs of counts without a library, or an empty profile, which have no shares.
    """
    profile = np.asarray(mean, dtype=np.float64)
    if scale.library != "none":
        return repeat_mean(profile, len(total_counts))
    if scale.log != "none" or not mean_total > 0:
        return None
    shares: Doubles = np.asarray(total_counts, dtype=np.float64)[:, None] * (profile / mean_total)
    return shares
