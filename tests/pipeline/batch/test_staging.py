"""Slides on local disk: copied whole, seen by their owner alone, and nothing removed but what was made."""

import fcntl
import json
import os
import stat
import subprocess
import sys
from collections import namedtuple

import pytest

from genrag_cli import stopping
from genrag_cli.errors import OutputError, SlideError, Stopped, UsageError
from genrag_cli.pipeline.batch import staging
from genrag_cli.pipeline.batch.inputs import Job
from genrag_cli.pipeline.batch.staging import MARK, PREFIX, SPARE, Stage, open_address, place_for_remote, remote_stamp
from genrag_cli.types import Listener


@pytest.fixture
def local(tmp_path):
    return tmp_path / "local"


@pytest.fixture
def stage(local):
    made = Stage(local)
    yield made
    made.close()


@pytest.fixture
def slide(tmp_path):
    path = tmp_path / "archive" / "a.svs"
    path.parent.mkdir()
    path.write_bytes(bytes(range(256)) * 100)
    return path


@pytest.fixture
def memory():
    import fsspec

    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()


class Watching(Listener):
    """Calls something at each piece that was copied."""

    def __init__(self, meanwhile):
        super().__init__()
        self.meanwhile, self.steps = meanwhile, []

    def progress(self, step):
        self.steps.append((step.done, step.total))
        self.meanwhile()


def job(slide):
    return Job(str(slide), "a")


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_folder_is_its_owners_alone(stage, local):
    assert stat.S_IMODE(stage.own.stat().st_mode) == 0o700
    assert stage.own.parent == local
    assert json.loads((stage.own / MARK).read_text()) == {"host": os.uname().nodename, "pid": os.getpid()}


def test_a_copy_has_the_slides_name_and_bytes_and_goes_when_it_is_dropped(stage, slide):
    listener = Listener()
    copy = stage.fetch(job(slide), listener)
    assert (copy.name, copy.read_bytes()) == ("a.svs", slide.read_bytes())
    assert stage.own in copy.parents
    assert listener.seconds["stage"] > 0
    stage.drop(copy)
    assert [p.name for p in stage.own.iterdir()] == [MARK]
    stage.close()
    assert not stage.own.exists()
    assert slide.exists()


def test_two_slides_of_one_name_do_not_meet(stage, slide, tmp_path):
    other = tmp_path / "other" / "a.svs"
    other.parent.mkdir()
    other.write_bytes(b"other")
    one, two = stage.fetch(job(slide), Listener()), stage.fetch(job(other), Listener())
    stage.drop(one)
    assert two.read_bytes() == b"other"


def test_a_mirax_slide_comes_with_its_data(stage, slide):
    folder = slide.parent
    (folder / "m.mrxs").write_bytes(b"index")
    (folder / "m" / "deep").mkdir(parents=True)
    (folder / "m" / "Slidedat.ini").write_bytes(b"ini")
    (folder / "m" / "deep" / "Data0001.dat").write_bytes(b"data")
    copy = stage.fetch(job(folder / "m.mrxs"), Listener())
    assert contents(copy.parent) == {"m.mrxs": b"index", "m/Slidedat.ini": b"ini", "m/deep/Data0001.dat": b"data"}


def test_a_vms_slide_comes_with_the_files_that_its_index_names(stage, slide):
    folder = slide.parent
    (folder / "v.vms").write_text("[Virtual Microscope Specimen]\nImageFile=v.jpg\nMapFile=v_map.jpg\nOther=1\n")
    for name in ("v.jpg", "v_map.jpg"):
        (folder / name).write_bytes(name.encode())
    copy = stage.fetch(job(folder / "v.vms"), Listener())
    assert sorted(contents(copy.parent)) == ["v.jpg", "v.vms", "v_map.jpg"]


def test_a_slide_that_is_a_folder_is_copied_as_one(stage, tmp_path):
    image = tmp_path / "i.ome.zarr"
    (image / "0").mkdir(parents=True)
    (image / "zarr.json").write_text("{}")
    (image / "0" / "c").write_bytes(b"chunk")
    copy = stage.fetch(job(image), Listener())
    assert copy.name == "i.ome.zarr"
    assert contents(copy) == {"zarr.json": b"{}", "0/c": b"chunk"}
    stage.drop(copy)
    assert not copy.exists()
    assert image.exists()


def test_a_slide_for_which_there_is_no_room_says_so_before_anything_is_copied(stage, slide, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda _: usage(0, 0, SPARE + slide.stat().st_size - 1))
    with pytest.raises(SlideError, match=r"a.svs: .* do not fit into --stage .*local") as raised:
        stage.fetch(job(slide), Listener())
    assert "--stage" in raised.value.hint
    assert [p.name for p in stage.own.iterdir()] == [MARK]


def test_a_disk_that_fills_up_meanwhile_is_an_output_error_and_leaves_nothing(stage, slide, monkeypatch):
    opened = staging.Path.open

    class Full:
        def __init__(self, sink):
            self.sink = sink

        def write(self, piece):
            raise OSError(28, "No space left on device")

        def close(self):
            self.sink.close()

    def full(self, mode="r", *args, **kwargs):
        return Full(opened(self, mode)) if mode == "wb" and stage.own in self.parents else opened(self, mode)

    monkeypatch.setattr(staging.Path, "open", full)
    with pytest.raises(OutputError, match="disk full"):
        stage.fetch(job(slide), Listener())
    monkeypatch.undo()
    assert [p.name for p in stage.own.iterdir()] == [MARK]


@pytest.mark.parametrize("grown", [True, False])
def test_a_slide_that_changes_while_it_is_copied_is_refused(stage, slide, grown):
    def change():
        if grown:
            with slide.open("ab") as file:
                file.write(b"more")
        else:
            os.utime(slide, ns=(1, 1))

    with pytest.raises(SlideError, match="changed while it was copied"):
        stage.fetch(job(slide), Watching(change))
    assert [p.name for p in stage.own.iterdir()] == [MARK]


def test_a_slide_that_vanishes_while_it_is_copied_is_the_slides_error(stage, slide):
    with pytest.raises(SlideError, match=r"a.svs: cannot be copied"):
        stage.fetch(job(slide), Watching(slide.unlink))


def test_a_slide_that_is_not_there_says_so(stage, slide):
    with pytest.raises(SlideError, match=r"gone.svs: no such slide"):
        stage.fetch(job(slide.with_name("gone.svs")), Listener())


def test_a_stop_ends_a_copy_between_two_pieces(stage, slide, monkeypatch):
    monkeypatch.setattr(staging, "_CHUNK", 1000)
    listener = Watching(lambda: len(listener.steps) == 3 and stopping.ask())
    try:
        with pytest.raises(Stopped):
            stage.fetch(job(slide), listener)
    finally:
        stopping._asked.clear()
    assert len(listener.steps) == 3
    assert [p.name for p in stage.own.iterdir()] == [MARK]


def test_a_place_where_nothing_can_be_made_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="a file stands where a folder is needed"):
        Stage(tmp_path / "file")


def test_only_what_dead_processes_of_this_machine_left_is_removed(local):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    marks = {
        "dead": {"host": os.uname().nodename, "pid": dead.pid},
        "alive": {"host": os.uname().nodename, "pid": dead.pid},  # a number of another container's
        "far": {"host": "another-machine", "pid": dead.pid},
        "torn": None,
    }
    for name, mark in marks.items():
        (local / f"{PREFIX}{name}").mkdir(parents=True)
        (local / f"{PREFIX}{name}" / "slide.svs").write_bytes(b"1")
        (local / f"{PREFIX}{name}" / MARK).write_text("{" if mark is None else json.dumps(mark))
    for name in ("mine", f"{PREFIX}unmarked"):
        (local / name).mkdir()
    (local / f"{PREFIX}file").write_text("mine")
    with (local / f"{PREFIX}alive" / MARK).open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        beside, stage = Stage(local), Stage(local)
    assert beside.own.exists()
    beside.close()
    stage.close()
    assert sorted(p.name.removeprefix(PREFIX) for p in local.iterdir()) == [
        "alive", "far", "file", "mine", "torn", "unmarked"
    ]  # fmt: skip


def test_closing_leaves_what_others_put_beside(stage, local):
    (local / "mine.txt").write_text("mine")
    stage.close()
    assert [p.name for p in local.iterdir()] == ["mine.txt"]


def test_dropping_what_was_not_fetched_removes_nothing(stage, slide):
    stage.drop(slide)
    assert slide.exists()


# Addresses


@pytest.fixture(params=["memory", "file"])
def address(request, memory, slide):
    if request.param == "memory":
        memory.pipe("/bucket/a.svs", slide.read_bytes())
        return "memory://bucket/a.svs"
    return f"file://{slide}"


def test_a_slide_at_an_address_is_copied(stage, slide, address):
    copy = stage.fetch(job(address), Listener())
    assert (copy.name, copy.read_bytes()) == ("a.svs", slide.read_bytes())
    stage.drop(copy)
    assert slide.exists()


def test_nothing_at_an_address_is_the_slides_error(stage, address):
    with pytest.raises(SlideError, match="cannot be copied"):
        stage.fetch(job(address + "x"), Listener())
    with pytest.raises(SlideError, match="cannot be reached"):
        remote_stamp(address + "x")
    assert [p.name for p in stage.own.iterdir()] == [MARK]


def test_a_slide_of_several_files_cannot_be_fetched_from_an_address(stage, memory):
    memory.pipe("/bucket/m.mrxs", b"1")
    with pytest.raises(SlideError, match="several files") as raised:
        stage.fetch(job("memory://bucket/m.mrxs"), Listener())
    assert raised.value.hint == "Copy it first."


def test_a_stamp_of_an_address_changes_with_its_file_only(memory, slide, address):
    before = remote_stamp(address)
    assert before == remote_stamp(address)
    assert before[0] == slide.stat().st_size
    if address.startswith("file"):
        os.utime(slide, ns=(1, 1))
    else:
        memory.rm("/bucket/a.svs")
        memory.pipe("/bucket/a.svs", bytes(slide.stat().st_size))
    assert remote_stamp(address)[0] == before[0]
    assert remote_stamp(address) != before


def test_an_address_of_an_unknown_kind_is_refused():
    with pytest.raises(UsageError, match="nosuch"):
        open_address("nosuch://bucket/a.svs")


def test_an_address_without_the_package_for_it_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(UsageError, match="fsspec") as raised:
        open_address("memory://bucket/a.svs")
    assert "generag[remote]" in raised.value.hint


def test_addresses_are_copied_to_the_jobs_scratch_unless_another_place_was_given(tmp_path):
    far, near = [job("memory://a.svs")], [job("a.svs")]
    assert place_for_remote(tmp_path, far, {"TMPDIR": "/x"}) == tmp_path
    assert place_for_remote(None, near, {"TMPDIR": "/x"}) is None
    assert str(place_for_remote(None, far, {"SLURM_TMPDIR": "/y", "TMPDIR": "/x"})) == "/y"
    assert str(place_for_remote(None, far, {"TMPDIR": "/x"})) == "/x"
    assert str(place_for_remote(None, far, {})) == "/tmp"
