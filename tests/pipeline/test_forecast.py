"""The arithmetic of forecasts: memory and disk by size, rates times spots, which tiles stand for a slide."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from genrag_cli.pipeline.forecast import (
    RUN,
    RUNS,
    Sizes,
    SolveRates,
    TileRates,
    between,
    children_bytes,
    extrapolate,
    resident_bytes,
    sample_runs,
)

SMALL = Sizes(spots=1000, dim=10, tile_px=8, overview_px=100, resident=5_000_000)
FULL = replace(
    SMALL, bank_spots=2000, anchors=30, genes=400, references=50.0, sections=4, chunk=7_000_000, thumbnail_px=1000
)
TILES = TileRates(np.arange(4), 0.01, 0.1, np.zeros((4, 10), np.float32), n_read=8, n_bad=0)
SOLVING = SolveRates(
    queries=64, guess_s=0.001, search_s=3.0, solve_s=0.02, walk_s=0.5, reconstruct_s=0.003, references=50.0
)


def test_memory_is_the_formula_of_its_docstring():
    assert SMALL.memory == 5_000_000 + (384 << 20) + 3 * 8**2 * 192 + 4 * 1000 * 10
    bank = 6 * 2000 * (10 + 30)
    write = 4 * 1000 * 30 + 24 * 1000 * 50 + 24 * 1000 * 400 + 8 * 2000 * 400
    assert FULL.memory == 5_000_000 + bank + max(write, (384 << 20) + 3 * 8**2 * 192 + 4 * 1000 * 10)
    huge = replace(FULL, spots=1_000_000)
    write = 4 * 30_000_000 + 24 * 50_000_000 + 24 * 8_000_000 + 8 * 2000 * 400
    assert huge.memory == 5_000_000 + bank + write


def test_the_solver_can_be_the_peak():
    wide = replace(FULL, spots=1_000_000, dim=1000)
    assert wide.memory == 5_000_000 + 6 * 2000 * 1030 + 4 * 1_000_000 * (3 * 1000 + 2 * 30) + 7_000_000


def test_a_large_overview_can_be_the_peak():
    assert replace(SMALL, overview_px=100_000_000).memory == 5_000_000 + 9_600_000_000


def test_disk_is_the_formula_of_its_docstring():
    assert SMALL.embeddings == 1000 * (4 * 10 + 60)
    assert SMALL.prediction == 0
    assert FULL.prediction == 1000 * (4 * 430 + 8 * (50 + 2 * 4) + 260) + 40 * 2000 + 3 * 1000 + (256 << 10)
    assert FULL.scratch == 4 * 1000 * 10 + 12 * 1000 * 50


def test_rates_are_multiplied_by_the_spots():
    found = extrapolate(FULL, 2.0, TILES, SOLVING, overlap=False)
    expected = {
        "tissue": 2.0, "read": 10.0, "encode": 100.0, "guess": 1.0, "search": 3.0, "solve": 20.0, "reconstruct": 3.5,
    }  # fmt: skip
    assert found.seconds == pytest.approx(expected)
    assert found.total_s == pytest.approx(sum(expected.values()))
    assert found.measured == {"tiles": 8, "encoded": 4, "queries": 64}


def test_what_goes_on_at_the_same_time_counts_once():
    one, other = (extrapolate(FULL, 2.0, TILES, SOLVING, overlap=way) for way in (False, True))
    assert one.total_s - other.total_s == pytest.approx(10.0)


def test_what_was_not_measured_is_not_in_it():
    found = extrapolate(SMALL, 2.0, replace(TILES, encode_s=None, embeddings=None), None, overlap=False)
    assert found.seconds == pytest.approx({"tissue": 2.0, "read": 10.0})
    assert found.measured == {"tiles": 8, "encoded": 0, "queries": 0}
    assert "prediction" not in found.disk_bytes


@pytest.mark.parametrize("n", [1, RUN * RUNS, RUN * RUNS + 1, 100_000])
def test_tiles_that_stand_for_a_slide_are_runs_of_different_places(n):
    rows = sample_runs(n)
    assert len(rows) == min(n, RUN * RUNS)
    assert len(set(rows.tolist())) == len(rows)
    assert rows.min() >= 0
    assert rows.max() < n
    if n > RUN * RUNS:
        assert (np.diff(rows.reshape(RUNS, RUN)) == 1).all()
        assert abs(rows[0] - n / 2) < n / 4


def test_queries_between_queries_keep_the_first_and_lie_between():
    queries = np.array([[0.0, 1.0], [2.0, 5.0]], np.float32)
    more = between(queries, 50, seed=0)
    assert more.shape == (50, 2)
    assert (more[:2] == queries).all()
    assert (more >= queries.min(0)).all()
    assert (more <= queries.max(0)).all()


def test_memory_of_children_is_counted_apart():
    before = children_bytes()
    code = "x = bytearray(80_000_000); print(1, flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    held = children_bytes() - before
    child.communicate(b"\n")
    assert held > 80_000_000
    assert resident_bytes() > 10_000_000
