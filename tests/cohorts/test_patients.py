import pytest

from genrag_cli.cohorts.base import Section
from genrag_cli.cohorts.patients import assign_patients
from genrag_cli.errors import CohortError, UsageError


def sections(tmp_path, *names, patient=None):
    return [Section(name, patient, None, tmp_path, reader=None) for name in names]


def patients(found):
    return [s.patient for s in found]


@pytest.mark.parametrize(
    ("rule", "expected"), [("letter", ["B", "C", "C"]), ("each", ["B4", "C2", "C3"]), (r"(\d)$", ["4", "2", "3"])]
)
def test_a_pattern_or_its_shorthand_reads_the_patient_from_the_name(tmp_path, rule, expected):
    found, said = assign_patients(sections(tmp_path, "B4", "C2", "C3"), rule)
    assert patients(found) == expected
    assert not said


def test_prefix_takes_what_stands_before_the_first_separator(tmp_path):
    found, _ = assign_patients(sections(tmp_path, "P1_1", "P1_2", "P10-1", "P2"), "prefix")
    assert patients(found) == ["P1", "P1", "P10", None]


def test_a_table_names_patients_and_leaves_the_rest_unknown(tmp_path):
    table = tmp_path / "p.csv"
    table.write_text("section,patient,note\nC2, anna ,x\nD1,eve,\nC3,,\n", encoding="utf-8-sig")
    found, said = assign_patients(sections(tmp_path, "B4", "C2", "C3"), str(table))
    assert patients(found) == [None, "anna", None]
    assert said[0].startswith("patient unknown for B4, C3")


def test_what_a_rule_leaves_out_keeps_what_the_cohort_says(tmp_path):
    both = sections(tmp_path, "C2") + sections(tmp_path, "9", patient="study/1")
    found, said = assign_patients(both, "letter")
    assert patients(found) == ["C", "study/1"]
    assert not said


@pytest.mark.parametrize(
    ("rule", "why"), [("(", "not a regular expression"), ("C", "exactly one"), ("(a)(b)", "exactly one")]
)
def test_a_pattern_without_one_group_is_a_usage_error(tmp_path, rule, why):
    with pytest.raises(UsageError, match=why):
        assign_patients(sections(tmp_path, "C2"), rule)


def test_a_rule_that_fits_nothing_is_refused(tmp_path):
    with pytest.raises(CohortError, match="none of the 1 sections, such as 'C2'"):
        assign_patients(sections(tmp_path, "C2"), "^(X)")


@pytest.mark.parametrize(
    ("text", "why"),
    [("name,patient\nC2,a\n", "expected columns"), ("", "no rows"), ("section,patient\nC2,a\nC2,b\n", "two patients")],
)
def test_a_malformed_table_is_refused(tmp_path, text, why):
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(CohortError, match=why):
        assign_patients(sections(tmp_path, "C2"), tmp_path / "p.csv")


def test_a_missing_table_is_refused(tmp_path):
    with pytest.raises(CohortError, match=r"absent\.csv: cannot be read"):
        assign_patients(sections(tmp_path, "C2"), "absent.csv")
