"""One slide of a night that cannot be read, or not as it was: the others are done, and it has its reason."""

import shutil

import kill
import pytest


def test_a_night_without_faults(night):
    night.expect(night.run(), {})
    night.expect_mended()


PATIENCE_S = "6"
"""In which a process starts, however busy the machine is."""
FAULTS = pytest.mark.parametrize(
    ("how", "words"),
    [
        ("raise", "made-up fault"),
        ("segfault", "the process that read it died (SIGSEGV)"),
        ("hang", f"nothing could be read for {PATIENCE_S} s"),
        ("memory", "GiB of memory"),
    ],
)


@FAULTS
def test_a_reader_that_fails_as_it_opens(night, inject, monkeypatch, how, words):
    if how == "hang":
        monkeypatch.setenv("GENERAG_READ_TIMEOUT", PATIENCE_S)
    inject(at="open", how=how)
    night.expect(night.run(), {"b": words})
    inject()
    night.expect_mended()


@FAULTS
def test_a_reader_that_fails_at_one_tile(night, inject, monkeypatch, how, words):
    if how == "hang":
        monkeypatch.setenv("GENERAG_READ_TIMEOUT", PATIENCE_S)
    inject(at="tiles", how=how, rows=[7])
    night.expect(night.run(), {"b": words})
    inject()
    night.expect_mended()


def test_as_many_bad_tiles_as_are_allowed_are_left_out_and_named(night, inject, calm):
    inject(at="tiles", how="raise", rows=[7, 8])
    ran = night.run("--max-bad-tiles", "2")
    assert ran.code == 0, ran.err
    assert "2 of" in ran.err
    assert "cannot be read and are left out" in ran.err
    status = night.status("b")
    assert (status["state"], status["bad_tiles"]) == ("done", 2)
    made = kill.read_content(night.out)
    results = [key for key in calm if "status" not in key and not key.endswith("/generag")]  # which tell the options
    assert all(made[key] == calm[key] for key in results if key[0] != "b")
    assert made["b.stain.h5ad/obs"] != calm["b.stain.h5ad/obs"]
    assert kill.find_leftovers(night.out) == []


def test_one_bad_tile_more_than_allowed_is_a_bad_slide(night, inject):
    inject(at="tiles", how="raise", rows=[6, 7, 8])
    ran = night.run("--max-bad-tiles", "2")
    assert ran.code == 3
    assert night.status("b")["state"] == "failed"
    assert "3 of" in night.status("b")["reason"]
    inject()
    night.expect_mended()


def test_a_region_in_the_middle_that_cannot_be_read_and_later_can(night, inject, calm):
    inject(at="tiles", how="raise", rows=[7])
    assert night.run("--max-bad-tiles", "1").code == 0
    inject()
    night.expect_mended()  # which allows none


@pytest.mark.parametrize("at", ["open", "tiles"])
def test_all_slides_bad_is_exit_1(night, inject, at):
    inject(at=at, how="raise")
    for name in ("a", "c"):
        (night.slides / f"{name}.tif").unlink()
    ran = night.run()
    assert ran.code == 1
    assert night.status("b")["state"] == "failed"


def test_a_slide_that_vanishes_while_it_is_read(night, during, monkeypatch):
    away = night.slides.parent / "away.tif"
    during(lambda: shutil.move(night.slides / "b.tif", away))
    night.expect(night.run(), {"b": "vanished while it was being read"})
    monkeypatch.undo()
    shutil.move(away, night.slides / "b.tif")
    night.expect_mended()


def test_a_slide_that_is_replaced_while_it_is_read(night, during, monkeypatch):
    whole, other = night.slides.parent / "whole.tif", night.slides.parent / "other.tif"
    shutil.copy2(night.slides / "b.tif", whole)
    shutil.copy2(night.slides / "c.tif", other)
    during(lambda: other.replace(night.slides / "b.tif"))
    night.expect(night.run(), {"b": "replaced by another file while it was being read"})
    monkeypatch.undo()
    whole.replace(night.slides / "b.tif")
    night.expect_mended()


def test_a_slide_that_may_not_be_read_in_a_folder_that_may_not_be_written(night):
    (night.slides / "b.tif").chmod(0)
    night.slides.chmod(0o555)
    ran = night.in_shell(obeying=True)
    night.slides.chmod(0o755)
    (night.slides / "b.tif").chmod(0o644)
    night.expect(ran, {"b": "ermission denied"})
    night.expect_mended()


def test_a_folder_of_results_that_may_not_be_written(night):
    night.out.mkdir()
    night.out.chmod(0o555)
    ran = night.in_shell(obeying=True)
    assert ran.code == 1
    assert "you may not write there" in ran.err
    assert "Traceback" not in ran.err
    assert list(night.out.iterdir()) == []
    night.out.chmod(0o755)
    night.expect_mended()
