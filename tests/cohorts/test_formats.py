import sys

import pytest

from genrag_cli.cohorts import Reading, open_cohort
from genrag_cli.cohorts.formats import BUILT_IN, choose_format, describe_counts, known_formats, load_format
from genrag_cli.errors import CohortError, UsageError

PLUGIN = """
from genrag_cli.cohorts.base import Cohort, Section

LAYOUT = "mylab.txt"

def looks_like(root):
    return (root / "mylab.txt").is_file()

def read_cohort(root, reading):
    counts = root / "mylab.txt"
    return Cohort(root, "?", (Section("S", "P", counts, counts, None),))

def read_one(counts, reading):
    return Section("S", "P", None, counts, None) if counts.name == "mylab.txt" else None
"""


@pytest.fixture
def plug_ins(tmp_path, monkeypatch):
    """A layout that works, one that does not load, and one that lacks names."""
    folder = tmp_path / "site"
    info = folder / "made_up_layout-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "made_up_layout.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: made_up_layout\nVersion: 1.0\n")
    lines = ("[generag.cohorts]", "mylab = made_up_layout", "gone = made_up_absent", "bare = made_up_layout:LAYOUT")
    (info / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "made_up_layout", raising=False)


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_layout_of_the_package_loads_and_ignores_an_empty_folder(name, tmp_path):
    layout = load_format(name)
    assert layout.LAYOUT
    assert not layout.looks_like(tmp_path)
    assert layout.read_one(tmp_path / "nothing.xyz", Reading()) is None


def test_a_plug_in_reads_its_layout(plug_ins, tmp_path):
    (tmp_path / "mylab.txt").touch()
    cohort = open_cohort(tmp_path)
    assert (cohort.format, cohort.sections[0].name) == ("mylab", "S")
    assert describe_counts(tmp_path / "mylab.txt", Reading())[0] == "mylab"


def test_a_broken_plug_in_stops_nothing_and_is_named(plug_ins, write_legacy, tmp_path):
    assert {"mylab", "gone", "bare"} <= set(known_formats())
    assert choose_format(write_legacy(tmp_path / "a"), None)[0] == "legacy-st"
    (tmp_path / "empty").mkdir()
    with pytest.raises(CohortError) as error:
        choose_format(tmp_path / "empty", None)
    assert "'gone' (made_up_absent) does not load" in error.value.hint
    assert "'bare' (made_up_layout:LAYOUT) lacks" in error.value.hint


def test_a_broken_plug_in_that_is_asked_for_is_refused(plug_ins, tmp_path):
    with pytest.raises(CohortError, match="does not load"):
        open_cohort(tmp_path, format="gone")
    with pytest.raises(UsageError, match="unknown cohort format"):
        load_format("nothing")
