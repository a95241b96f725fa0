import pytest

from genrag_cli.errors import CohortError, UsageError
from genrag_cli.evaluation.splits import leave_patients_out

PATIENTS = {"A1": "A", "A2": "A", "B1": "B"}


def test_a_patient_goes_with_all_sections():
    assert leave_patients_out(PATIENTS, ["A"]) == ["B1"]
    assert leave_patients_out(PATIENTS, []) == ["A1", "A2", "B1"]


def test_nothing_is_held_out_beside_an_unknown_patient():
    with pytest.raises(CohortError, match="patient of 1 of 4 sections is unknown") as error:
        leave_patients_out({**PATIENTS, "X": None}, ["A"])
    assert "--unknown-patient section" in error.value.hint
    assert leave_patients_out({**PATIENTS, "X": None}, []) == ["A1", "A2", "B1", "X"]


def test_a_patient_without_sections_is_refused():
    with pytest.raises(UsageError, match="'C' has no section"):
        leave_patients_out(PATIENTS, ["C"])
