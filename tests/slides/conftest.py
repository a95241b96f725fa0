"""Made-up sections: pink and purple tissue with nuclei on glass."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

Section = np.ndarray


def draw_section(width: int, height: int, glass: tuple[int, int, int] = (243, 242, 244), seed: int = 0) -> Section:
    """A disc of eosin with nuclei over the middle of the slide; 1 um per px."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    inside = (x - width / 2) ** 2 + (y - height / 2) ** 2 < (0.4 * min(width, height)) ** 2
    nuclei = np.kron(rng.random((height // 8 + 1, width // 8 + 1)) < 0.3, np.ones((8, 8), bool))[:height, :width]
    out = np.empty((height, width, 3), np.uint8)
    out[:] = glass
    out[inside] = (225, 150, 190)
    out[inside & nuclei] = (95, 70, 140)
    return out


def write_pyramid(path: Path, pixels: Section, mpp: float = 1.0, factors: tuple[int, ...] = (4,)) -> Path:
    """A tiled TIFF of no vendor, with its pixel size in the TIFF resolution."""
    resolution = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(pixels, photometric="rgb", tile=(128, 128), compression="deflate", metadata=None, **resolution)
        for f in factors:
            h, w = (side // f * f for side in pixels.shape[:2])
            small = pixels[:h, :w].reshape(h // f, f, w // f, f, 3).mean(axis=(1, 3)).round().astype(np.uint8)
            tiff.write(small, photometric="rgb", tile=(128, 128), compression="deflate", subfiletype=1, metadata=None)
    return path


@pytest.fixture(scope="session")
def section() -> Section:
    return draw_section(1500, 1200)


@pytest.fixture(scope="session")
def tiff_path(tmp_path_factory: pytest.TempPathFactory, section: Section) -> Path:
    """A tiled pyramidal TIFF at 1 um/px, read through OpenSlide."""
    return write_pyramid(tmp_path_factory.mktemp("slides") / "made-up.tif", section)


@pytest.fixture
def make_slide(tmp_path: Path) -> Callable[..., Path]:
    """Writes pixels as a tiled TIFF; `make_slide(pixels, mpp=..., factors=...)`."""
    return lambda pixels, **options: write_pyramid(tmp_path / "made.tif", pixels, **options)
