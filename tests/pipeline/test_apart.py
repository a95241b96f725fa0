"""Functions that read files of other tools in another process: what they give, and what becomes of those that fail."""

import os
import time
from pathlib import Path

import pytest

from genrag_cli.cohorts import read_truth
from genrag_cli.errors import CohortError, FeaturesError
from genrag_cli.pipeline.apart import read_apart
from genrag_cli.slides.decoder import end_idle


def test_what_a_function_gives_and_what_it_refuses_come_through(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("hello")
    assert read_apart("a.txt", FeaturesError, Path.read_text, Path("a.txt")) == "hello"
    with pytest.raises(CohortError, match=r"nowhere\.h5ad: no such file"):
        read_apart("nowhere.h5ad", FeaturesError, read_truth, "nowhere.h5ad")


def test_a_function_that_takes_its_process_down_is_refused_and_the_next_is_served():
    with pytest.raises(FeaturesError, match=r"a\.h5: the process that read it died \(SIGABRT\)"):
        read_apart("a.h5", FeaturesError, os.abort)
    assert read_apart("a.h5", FeaturesError, os.path.basename, "/x/y") == "y"


def test_a_function_that_hangs_is_refused(monkeypatch):
    end_idle()
    assert read_apart("a.h5", FeaturesError, abs, -1) == 1  # so that a process is there, and waits
    monkeypatch.setenv("GENERAG_READ_TIMEOUT", "1")
    with pytest.raises(CohortError, match=r"a\.h5: nothing could be read for 1 s") as caught:
        read_apart("a.h5", CohortError, time.sleep, 3600)
    assert "GENERAG_READ_TIMEOUT" in caught.value.hint


def test_a_function_that_needs_all_memory_is_refused():
    with pytest.raises(FeaturesError, match=r"a\.h5: reading it takes more than .* GiB of memory"):
        read_apart("a.h5", FeaturesError, bytes, 1 << 60)


def test_an_unexpected_error_is_an_expected_one_that_names_the_file():
    with pytest.raises(FeaturesError, match=r"a\.h5: ValueError: invalid literal"):
        read_apart("a.h5", FeaturesError, int, "x")
