import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrag_cli.cohorts.names import MAX_BYTES, find_alike, warn_of_patients, why_unusable


@pytest.mark.parametrize(
    "name",
    [
        "", " ", "..", ".", ".hidden", "../../evil", "a/b", "/abs", "a\\b", "a:b", "a*", "a?", "tab\there",
        "line\nbreak",
        "CON", "nul", "Com1", "aux.1", "trailing ", "x" * (MAX_BYTES + 1), "é" * MAX_BYTES,
    ],
)  # fmt: skip
def test_names_that_cannot_be_file_names_everywhere(name):
    assert why_unusable(name)


@pytest.mark.parametrize(
    "name", ["C2", "P1_1", "sp ace", "ünï", "a.b", "P1,1", "CONTROL", "com", "x" * MAX_BYTES, "-1"]
)
def test_names_that_can(name):
    assert why_unusable(name) == ""


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=20))
def test_a_usable_name_stays_in_its_folder(tmp_path_factory, name):
    folder = tmp_path_factory.getbasetemp()
    if not why_unusable(name):
        assert (folder / f"{name}.zarr.zip").resolve().parent == folder.resolve()


def test_names_that_differ_in_case_or_in_how_accents_are_written_are_alike():
    assert find_alike(["P1", "p1", "P2", "Jose\u0301", "José", "P1"]) == [("P1", "p1"), ("Jose\u0301", "José")]
    assert find_alike(["P1", "P10", "P-1", "P 1"]) == []


def test_patients_written_almost_alike_are_said():
    (said,) = warn_of_patients(["Smith", None, "smith", "Jones", None])
    assert "'Smith' and 'smith'" in said
