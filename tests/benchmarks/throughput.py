"""Tiles a second of reading alone, of encoding alone, and of both as `generag embed` does them.

    python tests/benchmarks/throughput.py [--tiles 20000] [--rounds 5] [--backbone lite0] [--work FOLDER] [--json FILE]

The slide is made up: a painted square of tissue, repeated until there are enough tiles, JPEG in a tiled pyramid. Every
tile is read and decoded as on a real slide; only what it shows comes again. Encoding alone is given tiles that were
read before it is timed.

Done in rounds, each an equal share of the tiles through all three, so that a machine that others use slows all alike.
Overlapped work cannot take less than the slower of the two, nor than the CPU time of both over all cores; the last row
says how much longer it takes than the largest of these.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from meter import load_average
from numpy.typing import NDArray
from setting import describe_machine, format_table

from genrag_cli.__main__ import wait_briefly

TILE_PX, MPP = 224, 0.5
"""A tile is 224 px of the slide, 112 um, as wide as the tiles lie apart: none is resampled, all pixels are read."""
SQUARE, JPEG_PX, COARSE = 2048, 256, 8
"""Side of the square that is repeated, side of a JPEG within the file, and the step from one level to the next."""
KEPT = 8
"""Batches of tiles that encoding alone goes round."""


@dataclass
class Cost:
    """What a kind of work has taken so far."""

    tiles: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    rounds: list[tuple[float, float]] = field(default_factory=list)
    """Seconds and CPU seconds of each."""

    def add(self, tiles: int, work: Callable[[], Any]) -> None:
        """Does the work and counts it."""
        start, cpu = time.perf_counter(), time.process_time()
        work()
        self.rounds.append((time.perf_counter() - start, time.process_time() - cpu))
        self.seconds += self.rounds[-1][0]
        self.cpu += self.rounds[-1][1]
        self.tiles += tiles


def main() -> None:
    """Makes the slide, measures, prints."""
    wait_briefly()  # as the command line does
    asked = read_arguments()
    with ExitStack() as stack:
        work = asked.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work.mkdir(parents=True, exist_ok=True)
        print(f"machine: {describe_machine()}; load {load_average()}", flush=True)
        path = work / f"tissue-{asked.tiles}.tif"
        if not path.exists():
            write_tissue(path, asked.tiles)
        costs, cores = measure(path, work, asked)
        if asked.work is None:
            path.unlink()
    print(report(costs, cores), flush=True)
    print(f"load at the end: {load_average()}")
    if asked.json:
        found = {"machine": describe_machine(), "cores": cores, **{k: vars(v) for k, v in costs.items()}}
        asked.json.write_text(json.dumps(found, indent=1))


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=20_000, help="tiles of the slide")
    parser.add_argument("--rounds", type=int, default=5, help="shares that the tiles go through in")
    parser.add_argument("--backbone", default="lite0")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", type=Path, help="folder that keeps the slide; None: a temporary one")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser.parse_args()


def measure(path: Path, work: Path, asked: argparse.Namespace) -> tuple[dict[str, Cost], int]:
    """Costs of the three, and the number of cores."""
    import torch

    from genrag_cli.backbones.registry import load_backbone
    from genrag_cli.pipeline.cpus import allotted_cpus
    from genrag_cli.pipeline.embedding import BATCH, BLOCK, embed_blocks
    from genrag_cli.pipeline.options import RunOptions
    from genrag_cli.slides import open_slide, plan_tiles, read_tiles, resolve_pixel_size
    from genrag_cli.stores.atomic import Parts
    from genrag_cli.types import Listener

    cores = allotted_cpus()
    run = RunOptions(device=asked.device, workers=cores)
    torch.set_num_threads(cores)
    backbone = load_backbone(asked.backbone, asked.device)
    costs = {name: Cost() for name in ("reading alone", "encoding alone", "overlapped")}
    with open_slide(path) as slide:
        pixel_size = resolve_pixel_size(slide.pixel_size_candidates())[0]
        side = TILE_PX * MPP
        grid = plan_tiles(slide, pixel_size, fov_um=side, pitch_um=side, tile_px=backbone.card.tile_px, min_tissue=0.1)
        grid = grid.rows(np.arange(min(asked.tiles, len(grid))))
        print(
            f"slide: {slide.size[0]} x {slide.size[1]} px, {path.stat().st_size / 1e6:.0f} MB, {slide.reader}; "
            f"{len(grid)} tiles of {grid.tile_px} px; backbone {asked.backbone} on {asked.device}",
            flush=True,
        )
        kept = [batch.pixels for batch in read_tiles(slide, grid.rows(np.arange(KEPT * BATCH)), batch=BATCH)]
        backbone.encode(kept[0])  # what the first call prepares is not counted
        for number, rows in enumerate(shares(len(grid), asked.rounds, BLOCK)):
            share = grid.rows(rows)

            def read(share: Any = share) -> None:
                for _ in read_tiles(slide, share, batch=BATCH, workers=cores):
                    pass

            def encode(n: int = len(rows)) -> None:
                for low in range(0, n, BATCH):
                    backbone.encode(kept[low // BATCH % KEPT][: n - low])

            def both(share: Any = share, number: int = number) -> None:
                parts = Parts(work / "embeddings", f"round {number}", "parts")
                for _ in embed_blocks(slide, share, backbone, parts, run, Listener(), "embed"):
                    pass
                parts.clear()

            for cost, piece in zip(costs.values(), (read, encode, both), strict=True):
                cost.add(len(rows), piece)
            print(f"round {number + 1}: " + "; ".join(f"{k} {v.seconds:.1f} s" for k, v in costs.items()), flush=True)
    return costs, cores


def shares(n: int, rounds: int, block: int) -> Iterator[NDArray[np.int64]]:
    """Rows of each round: equal shares in whole blocks, the last one as it comes."""
    each = max(1, round(n / rounds / block)) * block
    borders = [*range(0, n, each)][:rounds]
    for low, high in zip(borders, [*borders[1:], n], strict=True):
        yield np.arange(low, high)


def report(costs: dict[str, Cost], cores: int) -> str:
    """The table, the bound and the ratio."""
    rows = [
        (name, f"{c.seconds:.1f}", f"{c.tiles / c.seconds:.1f}", f"{c.cpu:.1f}", f"{c.cpu / c.seconds / cores:.0%}")
        for name, c in costs.items()
    ]
    reading, encoding, both = costs.values()
    parts = {
        "reading alone": reading.seconds,
        "encoding alone": encoding.seconds,
        f"their CPU time over {cores} cores": (reading.cpu + encoding.cpu) / cores,
    }
    name = max(parts, key=parts.__getitem__)
    ratios = sorted(
        b[0] / max(r[0], e[0], (r[1] + e[1]) / cores)
        for r, e, b in zip(reading.rounds, encoding.rounds, both.rounds, strict=True)
    )
    return (
        format_table(("", "s", "tiles/s", "CPU s", "of the cores"), rows)
        + f"\n\nbound: {parts[name]:.1f} s ({name}; "
        + ", ".join(f"{k} {v:.1f} s" for k, v in parts.items())
        + f"); overlapped takes {both.seconds / parts[name]:.3f} times that"
        + f" (round by round: {ratios[0]:.3f} to {ratios[-1]:.3f}, median {ratios[len(ratios) // 2]:.3f})"
    )


def write_tissue(path: Path, n_tiles: int) -> None:
    """A slide with at least so many tiles: a painted square, repeated; two levels, one `COARSE` times coarser.

    The JPEGs of one square are made once and written again and again.
    """
    import tifffile
    from PIL import Image

    from genrag_cli.synthetic import draw_section

    drawn = draw_section(1, 1, size_px=3 * SQUARE // 2).image
    low = SQUARE // 4  # the middle: tissue without glass around it
    square = drawn[low : low + SQUARE, low : low + SQUARE]
    small = np.asarray(Image.fromarray(square).reduce(COARSE))
    across = int(np.ceil(np.sqrt(n_tiles) * TILE_PX / SQUARE))
    down = int(np.ceil(n_tiles / (across * SQUARE // TILE_PX) * TILE_PX / SQUARE))

    def jpegs(level: NDArray[np.uint8]) -> Iterator[bytes]:
        cells = len(level) // JPEG_PX
        packed = [[pack(level[y : y + JPEG_PX, x : x + JPEG_PX]) for x in steps(cells)] for y in steps(cells)]
        for _ in range(down):
            for row in packed:
                for _ in range(across):
                    yield from row

    temporary = path.with_suffix(".partial")
    with tifffile.TiffWriter(temporary, bigtiff=True) as writer:
        for number, level in enumerate((square, small)):
            per_cm = 1e4 / (MPP * COARSE**number)
            writer.write(
                jpegs(level), shape=(down * len(level), across * len(level), 3), dtype=np.uint8, photometric="ycbcr",
                subsampling=(2, 2), compression="jpeg", tile=(JPEG_PX, JPEG_PX), subfiletype=int(number > 0),
                resolution=(per_cm, per_cm), resolutionunit="CENTIMETER", metadata=None,
            )  # fmt: skip
    temporary.replace(path)


def steps(cells: int) -> range:
    """Where the JPEGs of a level start."""
    return range(0, cells * JPEG_PX, JPEG_PX)


def pack(pixels: NDArray[np.uint8]) -> bytes:
    """A JPEG as scanners write them: quality 80, half as many colours as pixels each way."""
    from PIL import Image

    sink = BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG", quality=80, subsampling="4:2:0")
    return sink.getvalue()


if __name__ == "__main__":
    main()
