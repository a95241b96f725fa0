import numpy as np
import pytest

from genrag_cli.backbones.encoders.stain import EOSIN, HAEMATOXYLIN, measure_stains

H = HAEMATOXYLIN / np.linalg.norm(HAEMATOXYLIN)
E = EOSIN / np.linalg.norm(EOSIN)


def paint(h: np.ndarray, e: np.ndarray) -> np.ndarray:
    density = h[..., None] * H + e[..., None] * E
    return np.round(255 * 10**-density).astype(np.uint8)[None]


@pytest.mark.parametrize(("h", "e"), [(0.4, 0.0), (0.0, 0.5), (0.3, 0.2)])
def test_painted_amounts_are_measured_again(h: float, e: float) -> None:
    tile = paint(np.full((8, 8), h), np.full((8, 8), e))
    found = measure_stains(tile)[0]
    np.testing.assert_allclose(found[:2], [h, e], atol=0.01)
    np.testing.assert_allclose(found[2], np.mean(h * H + e * E), atol=0.005)
    np.testing.assert_allclose(found[3:], 0, atol=1e-7)


def test_spread_of_each_stain_is_its_own() -> None:
    rng = np.random.default_rng(0)
    h = rng.uniform(0, 0.6, (64, 64))
    found = measure_stains(paint(h, np.full((64, 64), 0.3)))[0]
    np.testing.assert_allclose(found[3], h.std(), rtol=0.02)
    assert found[4] < 0.02


def test_white_is_nothing_and_black_is_finite() -> None:
    tiles = np.stack([np.full((4, 4, 3), 255, np.uint8), np.zeros((4, 4, 3), np.uint8)])
    found = measure_stains(tiles)
    np.testing.assert_allclose(found[0], 0, atol=1e-12)
    np.testing.assert_allclose(found[1, 2], np.log10(255))
