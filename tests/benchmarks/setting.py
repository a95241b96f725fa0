"""What the benchmarks share: the machine and the code they ran on, the real cohort, sections as slides, and tables."""

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

REPOSITORY = Path(__file__).resolve().parent.parent.parent
HER2ST = REPOSITORY.parent / "shared" / "data" / "her2st"


def describe_machine() -> str:
    """CPU, cores, library versions and commit, in one line."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ] if Path("/proc/cpuinfo").exists() else []  # fmt: skip
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy"))
    cpu = names[0] if names else platform.processor() or platform.machine()
    return f"{cpu}, {cores} cores, Python {platform.python_version()}, {packages}, commit {describe_commit()}"


def describe_commit() -> str:
    """Short hash of the checked-out commit, and whether the package differs from it."""
    git = ["git", "-C", str(REPOSITORY)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--", "genrag_cli"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + (" with uncommitted changes" if changed.stdout.strip() else "")


def write_slide(path: Path, image: NDArray[np.uint8], mpp: float) -> None:
    """Writes a picture as a slide scanner would: a pyramid of JPEG tiles, the pixel size in the resolution tags.

    Args:
        path: a .tif; appears when it is whole.
        image: (h, w, 3) RGB.
        mpp: um per pixel.
    """
    import tifffile

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    packing = {"tile": (256, 256), "photometric": "rgb", "compression": "jpeg", "compressionargs": {"level": 90}}
    with tifffile.TiffWriter(temporary) as writer:
        for level in range(12):
            per_cm = 1e4 / (mpp * 2**level)
            size = {"resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER", "subfiletype": int(level > 0)}
            writer.write(image, **packing, **size, metadata=None)
            if min(image.shape[:2]) < 512:
                break
            h, w = image.shape[0] // 2, image.shape[1] // 2
            quads = image[: 2 * h, : 2 * w].reshape(h, 2, w, 2, 3)
            image = (quads.sum(axis=(1, 3), dtype=np.uint16) // 4).astype(np.uint8)
    temporary.replace(path)


def slide_of(section: Any, folder: Path) -> Path:
    """The picture of a measured section as a slide, its pixel size from the spots' pitch; written once."""
    from PIL import Image

    path = folder / f"{section.name}.tif"
    if not path.exists():
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            with Image.open(section.slide) as picture:
                pixels = np.array(picture.convert("RGB"))
        finally:
            Image.MAX_IMAGE_PIXELS = limit
        write_slide(path, pixels, section.spot_pitch_um / section.load().pitch_px)
    return path


def format_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, aligned so that it can be read as it is."""
    widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(columns), "|" + "|".join("-" * (w + 2) for w in widths) + "|", *map(line, rows)])
