"""A slide of 40,000 x 40,000 px through `generag retrieve`, and its tiles beside bare OpenSlide.

    python tests/benchmarks/large_slide.py [--side 40960] [--tissue 0.3] [--rounds 5] [--work FOLDER]

The slide is made up: a disc of painted tissue, one square of it repeated, on glass; JPEG in a tiled pyramid. A bank of
a made-up cohort predicts it with `lite0`; seconds by stage, tiles a second and the most memory that the command and the
process that decodes took are its own report's. Then some of the same tiles are read in rounds, each by bare OpenSlide
(`read_region` in as many threads, nothing else) and by the process that decodes, which also hands them over.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from meter import load_average
from numpy.typing import NDArray
from setting import describe_machine, format_table
from throughput import COARSE, JPEG_PX, MPP, SQUARE, TILE_PX, pack, steps

from genrag_cli.__main__ import wait_briefly


def main() -> None:
    """Makes the slide, runs, prints."""
    wait_briefly()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=40_960, help=f"px; rounded up to {SQUARE}")
    parser.add_argument("--tissue", type=float, default=0.3, help="share of the slide")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiles", type=int, default=2048, help="tiles of a round")
    parser.add_argument("--backbone", default="lite0")
    parser.add_argument("--work", type=Path, help="folder that keeps slide and bank; None: a temporary one")
    asked = parser.parse_args()
    with ExitStack() as stack:
        work = asked.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work.mkdir(parents=True, exist_ok=True)
        print(f"machine: {describe_machine()}; load {load_average()}", flush=True)
        path = work / f"tissue-{asked.side}.tif"
        if not path.exists():
            began = time.perf_counter()
            write_disc(path, asked.side, asked.tissue)
            print(f"written in {time.perf_counter() - began:.0f} s", flush=True)
        print(f"slide: {path.stat().st_size / 1e6:.0f} MB", flush=True)
        print(report_run(retrieve(path, work, asked.backbone)), flush=True)
        print(compare_reading(path, asked.rounds, asked.tiles), flush=True)
    print(f"load at the end: {load_average()}")


def write_disc(path: Path, side: int, share: float) -> None:
    """A slide with a disc of tissue on glass."""
    import tifffile
    from PIL import Image

    from genrag_cli.synthetic import draw_section

    drawn = draw_section(1, 1, size_px=3 * SQUARE // 2).image
    low = SQUARE // 4
    tissue = drawn[low : low + SQUARE, low : low + SQUARE]
    glass = np.random.default_rng(0).integers(236, 242, tissue.shape, dtype=np.uint8)
    n = -(-side // SQUARE)
    place = np.arange(n) + 0.5 - n / 2
    inside = np.hypot(place[:, None], place) < n * np.sqrt(share / np.pi)

    def jpegs(of_tissue: NDArray[np.uint8], of_glass: NDArray[np.uint8]) -> Iterator[bytes]:
        cells = len(of_tissue) // JPEG_PX
        packed = [
            [[pack(level[y : y + JPEG_PX, x : x + JPEG_PX]) for x in steps(cells)] for y in steps(cells)]
            for level in (of_glass, of_tissue)
        ]
        for line in inside:
            for row in range(cells):
                for is_tissue in line:
                    yield from packed[int(is_tissue)][row]

    temporary = path.with_suffix(".partial")
    with tifffile.TiffWriter(temporary, bigtiff=True) as writer:
        for number in range(2):
            shrunk = [np.asarray(Image.fromarray(p).reduce(COARSE**number)) for p in (tissue, glass)]
            edge, per_cm = n * len(shrunk[0]), 1e4 / (MPP * COARSE**number)
            writer.write(
                jpegs(*shrunk), shape=(edge, edge, 3), dtype=np.uint8, photometric="ycbcr", subsampling=(2, 2),
                compression="jpeg", tile=(JPEG_PX, JPEG_PX), subfiletype=int(number > 0), resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER", metadata=None,
            )  # fmt: skip
    temporary.replace(path)


def retrieve(path: Path, work: Path, backbone: str) -> dict[str, object]:
    """The report of `generag retrieve` over the slide, with a bank of a made-up cohort."""
    from genrag_cli.synthetic import write_cohort

    cohort, bank, side = work / "cohort", work / "bank.zarr", str(TILE_PX * MPP)
    if not bank.exists():
        write_cohort(cohort)
        build = ["build-bank", cohort, "--patients", "prefix", "--fov-um", side, "--backbone", backbone, "-q"]
        run([*build, "--bank", bank])
    command = ["retrieve", path, "--bank", bank, "--backbone", backbone, "--pitch-um", side, "--json", "--overwrite"]
    found: dict[str, object] = json.loads(run([*command, "--out", work / "out"]))["run"]
    return found


def run(arguments: list[object]) -> str:
    """Standard output of a command."""
    command = [sys.executable, "-m", "genrag_cli", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def report_run(report: dict[str, object]) -> str:
    """Seconds by stage, tiles a second, memory."""
    seconds = report["seconds"]
    assert isinstance(seconds, dict)
    rows = [(stage, f"{spent:.1f}") for stage, spent in seconds.items()]
    memory = float(str(report["peak_memory"])) / 2**30
    return (
        format_table(("stage", "s"), rows)
        + f"\n{report['tiles']} tiles, {report['tiles_per_s']} tiles/s (reading waited for, and encoding); "
        + f"{float(str(report['elapsed_s'])):.0f} s in all; peak memory {memory:.2f} GiB, decoding included"
    )


def compare_reading(path: Path, rounds: int, n_tiles: int) -> str:
    """Seconds of both ways, and their ratio round by round."""
    from genrag_cli.pipeline.cpus import allotted_cpus
    from genrag_cli.slides import RemoteSlide, find_tissue, plan_tiles, read_tiles, reading_order, resolve_pixel_size

    workers, side = allotted_cpus(), TILE_PX * MPP
    taken: list[tuple[float, float]] = []
    with RemoteSlide(path) as slide:
        pixel_size = resolve_pixel_size(slide.pixel_size_candidates())[0]
        tissue = slide.call(find_tissue, pixel_size)
        grid = plan_tiles(slide, pixel_size, fov_um=side, pitch_um=side, tile_px=TILE_PX, tissue=tissue)
        order = reading_order(slide, grid)
        for number in range(rounds):
            rows = order[number * n_tiles : (number + 1) * n_tiles]
            began = time.perf_counter()
            read_bare(path, grid.xy[rows], workers)
            middle = time.perf_counter()
            for batch in read_tiles(slide, grid, rows, batch=32, workers=workers, ahead=4, lasting=False):
                assert not batch.bad
            taken.append((middle - began, time.perf_counter() - middle))
    ratios = sorted(ours / bare for bare, ours in taken)
    bare, ours = (sum(column) for column in zip(*taken, strict=True))
    n = rounds * n_tiles
    return (
        f"reading {n} tiles of {TILE_PX} px with {workers} workers: bare OpenSlide {bare:.1f} s ({n / bare:.0f} "
        f"tiles/s), the process that decodes {ours:.1f} s ({n / ours:.0f} tiles/s); {ours / bare:.3f} times (round by "
        f"round {ratios[0]:.3f} to {ratios[-1]:.3f}, median {ratios[len(ratios) // 2]:.3f})"
    )


def read_bare(path: Path, corners: NDArray[np.int64], workers: int) -> None:
    """OpenSlide alone: one handle, as many threads."""
    import openslide

    with openslide.OpenSlide(path) as slide, ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(lambda xy: slide.read_region(tuple(map(int, xy)), 0, (TILE_PX, TILE_PX)), corners):
            pass


if __name__ == "__main__":
    main()
