"""Slides read by another process: the same pixels, and whatever happens over there is one slide's trouble."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from genrag_cli import stopping
from genrag_cli.errors import SlideError, Stopped, UsageError
from genrag_cli.slides import RemoteSlide, decoder, open_slide, plan_tiles, read_tiles
from genrag_cli.slides.mpp import resolve_pixel_size
from genrag_cli.slides.tissue import find_tissue
from genrag_cli.testing.slide_contract import SlideContract

FAULTS = """
import os, sys, threading, time
from genrag_cli.slides.tiles import TileReader

read = TileReader.read

def pid(slide): return os.getpid()
def sleep(slide, seconds): time.sleep(seconds); return "slept"
def kill(slide): os.kill(os.getpid(), 9)
def leave(slide): print("libtiff: heap is corrupted", file=sys.stderr, flush=True); os._exit(7)
def fill(slide): return len(bytearray(1 << 33))
def blow(slide): raise ZeroDivisionError("no such column")
def n_readers(slide): return sum(t.name.startswith("tiles") for t in threading.enumerate())
def n_read(slide): return len(seen)
def slow(slide, times, seconds):
    for _ in range(times):
        time.sleep(seconds)
        slide.read_region(0, 0, 8, 8, 0)
    return "done"

seen = []

def tiles(slide, rows, how):
    def broken(self, row, into):
        seen.append(row)
        if how == "slow": time.sleep(0.02)
        if row in rows:
            if how == "raise": raise ValueError("bad Huffman code")
            if how == "kill": os.kill(os.getpid(), 11)
            if how == "hang": time.sleep(600)
            if how == "fill": raise MemoryError
            if how == "once" and seen.count(row) == 1: raise ValueError("a server that was away")
        read(self, row, into)
    TileReader.read = broken
"""


@pytest.fixture(scope="module", autouse=True)
def _module_of_faults(tmp_path_factory):
    """What processes started from here on know how to do wrong."""
    folder = tmp_path_factory.mktemp("faults")
    (folder / "misbehave.py").write_text(FAULTS)
    decoder.end_idle()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        patch.syspath_prepend(folder)
        yield
        sys.modules.pop("misbehave", None)
    decoder.end_idle()


@pytest.fixture
def faults():
    """The faults; a process that was made to misbehave serves nobody else."""
    import misbehave

    decoder.end_idle()
    yield misbehave
    decoder.end_idle()
    stopping._asked.clear()


@pytest.fixture
def slide(tiff_path, faults):
    with RemoteSlide(tiff_path) as opened:
        yield opened


def grid_of(slide, fov_um=64, tile_px=32):
    pixel_size, _ = resolve_pixel_size(slide.pixel_size_candidates())
    return plan_tiles(slide, pixel_size, fov_um=fov_um, tile_px=tile_px, tissue=find_tissue(slide, pixel_size))


@pytest.fixture(scope="module")
def expected(tiff_path):
    """Grid of the slide, and its tiles as read in this process."""
    with open_slide(tiff_path) as local:
        grid = grid_of(local)
        return grid, np.concatenate([b.pixels for b in read_tiles(local, grid, batch=16)])


def is_there(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until(true, seconds=20.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


class TestRemoteSlide(SlideContract):
    def open(self, path):
        return RemoteSlide(path, pictures=True)

    @pytest.fixture
    def path(self, tiff_path):
        return tiff_path


@pytest.mark.parametrize("bursts", [False, True])
@pytest.mark.parametrize(("batch", "workers", "ahead"), [(16, 1, 1), (7, 3, 4), (1000, 2, 1)])
def test_tiles_are_those_that_this_process_reads_in_the_order_asked(tiff_path, expected, bursts, batch, workers, ahead):
    grid, pixels = expected
    rows = np.random.default_rng(0).permutation(len(grid))
    with RemoteSlide(tiff_path) as slide:
        got = list(slide.tiles(grid, rows, batch, workers, ahead, bursts=bursts))
    assert [len(b.rows) for b in got[:-1]] == [batch] * (len(got) - 1)
    np.testing.assert_array_equal(np.concatenate([b.rows for b in got]), rows)
    np.testing.assert_array_equal(np.concatenate([b.pixels for b in got]), pixels[rows])
    assert not any(b.bad for b in got)


def test_batches_that_were_given_do_not_change_afterwards(tiff_path, expected):
    grid, pixels = expected
    with RemoteSlide(tiff_path) as slide:
        kept = [b.pixels for b in slide.tiles(grid, np.arange(len(grid)), 8, 2, 1)]
    np.testing.assert_array_equal(np.concatenate(kept), pixels)


@pytest.mark.parametrize("bursts", [False, True])
@pytest.mark.parametrize("ahead", [1, 4])
def test_passing_batches_hold_their_tiles_until_the_next_is_asked_for(tiff_path, expected, bursts, ahead):
    grid, pixels = expected
    begin = 0
    with RemoteSlide(tiff_path) as slide:
        for tiles in slide.tiles(grid, np.arange(len(grid)), 8, 2, ahead, bursts=bursts, lasting=False):
            slide.read_region(0, 0, 8, 8, 0)  # answered once batches that are read meanwhile have come
            np.testing.assert_array_equal(tiles.pixels, pixels[begin : begin + len(tiles.rows)])
            begin += len(tiles.rows)
    assert begin == len(grid)


def test_a_stream_begun_early_gives_the_same_whatever_is_asked_in_between(slide, expected, tiff_path):
    grid, pixels = expected
    stream = slide.begin_tiles(grid, np.arange(len(grid)), 16, 2, 3)
    with open_slide(tiff_path) as local:
        assert slide.digest() == local.digest()
        batches = stream.batches()
        first = next(batches)
        np.testing.assert_array_equal(slide.read_region(3, 4, 50, 40, 0), local.read_region(3, 4, 50, 40, 0))
    assert slide.call(find_tissue, grid.pixel_size).mask.any()
    np.testing.assert_array_equal(np.concatenate([first.pixels, *(b.pixels for b in batches)]), pixels)
    stream.end()


def test_no_more_is_read_ahead_than_was_asked_for(slide, expected, faults):
    grid, _ = expected
    slide.call(faults.tiles, [], "count")
    stream = slide.begin_tiles(grid, np.arange(len(grid)), 4, 2, 3)
    wait_until(lambda: slide.call(faults.n_read) >= 12)
    time.sleep(0.2)
    assert slide.call(faults.n_read) == 12
    stream.end()


def test_ended_streams_leave_nothing_being_read(slide, expected, faults):
    grid, pixels = expected
    slide.call(faults.tiles, [], "slow")
    rows = np.arange(len(grid))
    stream = slide.begin_tiles(grid, rows, 8, 2, 4)
    next(stream.batches())
    stream.end()
    assert slide.call(faults.n_readers) == 0
    n = slide.call(faults.n_read)
    assert n < len(grid)
    time.sleep(0.1)
    assert slide.call(faults.n_read) == n
    stream.end()
    for batch in slide.tiles(grid, rows, 8, 2, 1):  # left in the middle
        np.testing.assert_array_equal(batch.pixels, pixels[:8])
        break
    assert slide.call(faults.n_readers) == 0
    np.testing.assert_array_equal(np.concatenate([b.pixels for b in slide.tiles(grid, rows, 8, 2, 1)]), pixels)


def test_bad_tiles_are_named_and_white_and_the_others_are_right(slide, expected, faults):
    grid, pixels = expected
    slide.call(faults.tiles, [2, 9], "raise")
    got = list(slide.tiles(grid, np.arange(len(grid)), 8, 2, 2))
    assert {row: why for b in got for row, why in b.bad.items()} == dict.fromkeys(
        (2, 9), "ValueError: bad Huffman code"
    )
    together = np.concatenate([b.pixels for b in got])
    assert (together[[2, 9]] == 255).all()
    good = np.setdiff1d(np.arange(len(grid)), [2, 9])
    np.testing.assert_array_equal(together[good], pixels[good])


def test_a_tile_that_fails_once_is_read_again(slide, expected, faults):
    grid, pixels = expected
    slide.call(faults.tiles, [5], "once")
    got = list(slide.tiles(grid, np.arange(len(grid)), 8, 1, 2))
    assert not any(b.bad for b in got)
    np.testing.assert_array_equal(np.concatenate([b.pixels for b in got]), pixels)


def test_a_tile_that_takes_too_much_memory_is_a_bad_tile(slide, expected, faults):
    grid, _ = expected
    slide.call(faults.tiles, [3], "fill")
    (bad,) = [b.bad for b in slide.tiles(grid, np.arange(8), 8, 1, 1)]
    assert list(bad) == [3]
    assert "takes more than" in bad[3]


def test_a_process_that_dies_in_a_tile_is_one_slides_error(tiff_path, expected, faults):
    grid, pixels = expected
    with RemoteSlide(tiff_path) as slide:
        slide.call(faults.tiles, [20], "kill")
        with pytest.raises(SlideError, match=r"made-up.tif: the process that read it died \(SIGSEGV\)"):
            list(slide.tiles(grid, np.arange(len(grid)), 8, 1, 1))
        with pytest.raises(SlideError, match="has ended"):
            slide.digest()
    with RemoteSlide(tiff_path) as slide:
        got = [b.pixels for b in slide.tiles(grid, np.arange(len(grid)), 8, 1, 1)]
    np.testing.assert_array_equal(np.concatenate(got), pixels)


def test_a_process_that_dies_names_signal_or_exit_code_and_its_last_words(tiff_path, faults):
    with RemoteSlide(tiff_path) as slide, pytest.raises(SlideError) as raised:
        slide.call(faults.kill)
    assert raised.value.message.endswith("made-up.tif: the process that read it died (SIGKILL)")
    assert "lack of memory" in raised.value.hint
    with RemoteSlide(tiff_path) as slide, pytest.raises(SlideError) as raised:
        slide.call(faults.leave)
    assert raised.value.message.endswith("died (exit code 7): libtiff: heap is corrupted")
    assert "copy it again" in raised.value.hint


def test_a_process_that_dies_while_a_stream_is_ended_is_no_error_there(tiff_path, expected, faults):
    grid, _ = expected
    with RemoteSlide(tiff_path) as slide:
        stream = slide.begin_tiles(grid, np.arange(len(grid)), 8, 1, 1)
        os.kill(slide.call(faults.pid), signal.SIGKILL)
        stream.end()
        assert not slide._process.alive


@pytest.mark.parametrize("at_the_end", [False, True])
def test_a_read_that_hangs_is_ended_after_the_patience_that_was_set(
    tiff_path, expected, faults, monkeypatch, at_the_end
):
    grid, _ = expected
    with RemoteSlide(tiff_path) as slide:
        slide.call(faults.tiles, [4], "hang")
        number = slide.call(faults.pid)
        stream = slide.begin_tiles(grid, np.arange(8), 8, 1, 1)
        wait_until(lambda: slide.call(faults.n_read) == 5)
        monkeypatch.setenv("GENERAG_READ_TIMEOUT", "0.6")
        if at_the_end:
            stream.end()
        else:
            with pytest.raises(SlideError, match=r"nothing could be read for 0.6 s") as raised:
                list(stream.batches())
            assert "GENERAG_READ_TIMEOUT" in raised.value.hint
    assert not is_there(number)


def test_long_work_is_waited_for_as_long_as_reads_finish(slide, faults, monkeypatch):
    monkeypatch.setenv("GENERAG_READ_TIMEOUT", "2")
    assert slide.call(faults.slow, 10, 0.35) == "done"


@pytest.mark.parametrize("text", ["soon", "0", "-3", "nan"])
def test_a_patience_that_is_no_number_is_refused(tiff_path, monkeypatch, text):
    monkeypatch.setenv("GENERAG_READ_TIMEOUT", text)
    with pytest.raises(UsageError, match="GENERAG_READ_TIMEOUT"):
        RemoteSlide(tiff_path)


def test_more_memory_than_the_limit_is_an_error_and_the_slide_is_read_on(tiff_path, faults, monkeypatch):
    monkeypatch.setattr(decoder, "memory_limit", lambda: 1 << 30)
    with RemoteSlide(tiff_path) as slide:
        with pytest.raises(SlideError, match=r"made-up.tif: reading it takes more than [\d.]+ GiB of memory"):
            slide.call(faults.fill)
        assert slide.read_region(0, 0, 4, 4, 0).shape == (4, 4, 3)


def test_an_unexpected_error_is_the_slides_and_named(slide, faults):
    with pytest.raises(SlideError, match=r"made-up.tif: ZeroDivisionError: no such column"):
        slide.call(faults.blow)
    assert slide.read_region(0, 0, 4, 4, 0).shape == (4, 4, 3)


def test_what_cannot_be_opened_says_so_and_the_process_serves_the_next(tmp_path, tiff_path):
    with pytest.raises(SlideError, match=r"gone.svs: no such slide"):
        RemoteSlide(tmp_path / "gone.svs")
    (tmp_path / "notes.svs").write_text("no pixels")
    with pytest.raises(SlideError, match=r"notes.svs"):
        RemoteSlide(tmp_path / "notes.svs")
    with RemoteSlide(tiff_path) as slide:
        assert slide.size == (1500, 1200)


def test_one_process_serves_one_slide_after_the_other(tiff_path, faults):
    numbers = set()
    for _ in range(3):
        with RemoteSlide(tiff_path) as slide:
            numbers.add(slide.call(faults.pid))
    assert len(numbers) == 1
    assert 1 << 24 < slide.peak_memory < 1 << 33


def test_two_slides_at_once_have_a_process_each(tiff_path, faults):
    with RemoteSlide(tiff_path) as one, RemoteSlide(tiff_path) as other:
        assert one.call(faults.pid) != other.call(faults.pid)
        np.testing.assert_array_equal(one.read_region(9, 9, 30, 20, 0), other.read_region(9, 9, 30, 20, 0))


def test_a_process_that_died_while_idle_is_replaced(tiff_path, faults):
    with RemoteSlide(tiff_path) as slide:
        number = slide.call(faults.pid)
    os.kill(number, signal.SIGKILL)
    wait_until(lambda: not is_there(number))
    with RemoteSlide(tiff_path) as slide:
        assert slide.call(faults.pid) != number


def test_a_closed_slide_says_so_and_closing_again_does_nothing(tiff_path):
    slide = RemoteSlide(tiff_path)
    slide.close()
    slide.close()
    with pytest.raises(SlideError, match="closed already"):
        slide.digest()


def test_a_stop_ends_the_wait_and_the_process(slide, faults):
    number = slide.call(faults.pid)
    threading.Timer(0.2, stopping.ask).start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        slide.call(faults.sleep, 60)
    assert time.monotonic() - began < 30
    assert not is_there(number)


def test_ctrl_c_in_a_question_leaves_no_answer_for_the_next(tiff_path, faults):
    def interrupt(_signal, _frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    slide = RemoteSlide(tiff_path)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            slide.call(faults.sleep, 1)
    finally:
        signal.signal(signal.SIGALRM, before)
    slide.close()
    assert slide.peak_memory == 0
    with RemoteSlide(tiff_path) as other:
        assert len(other.digest()) == 64
