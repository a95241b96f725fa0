"""What is left out together."""

import numpy as np
import pytest

from genrag_cli.backbones.folds import fold_groups
from genrag_cli.errors import BackboneError

XY = np.stack(np.meshgrid(np.arange(10.0), np.arange(6.0)), axis=-1).reshape(-1, 2)
SECTIONS = np.repeat(["s1", "s2", "s3"], 20)


def test_known_patients_are_left_out() -> None:
    labels, rule = fold_groups(np.repeat(["p", "q", "q"], 20), SECTIONS, XY)
    assert rule == "leave-one-patient-out"
    assert set(labels) == {"p", "q"}


@pytest.mark.parametrize("patients", [["p", "p", "p"], ["p", "q", None], ["p", "q", ""], [None, None, None]])
def test_one_or_an_unknown_patient_falls_to_sections(patients: list[str | None]) -> None:
    labels, rule = fold_groups(np.repeat(patients, 20), SECTIONS, XY)
    assert rule == "leave-one-section-out"
    np.testing.assert_array_equal(labels, SECTIONS)


def test_one_section_is_cut_into_five_compact_blocks() -> None:
    labels, rule = fold_groups([None] * 60, np.full(60, "s1"), XY)
    assert rule == "spatial-blocks"
    assert len(set(labels)) == 5
    spread = np.mean([XY[labels == label].var(axis=0).sum() for label in set(labels)])
    assert spread < XY.var(axis=0).sum() / 2


def test_blocks_are_the_same_every_time_and_never_empty() -> None:
    few = XY[[0, 0, 0, 1, 59]]
    labels, _ = fold_groups([""] * 5, np.full(5, "s"), few)
    assert len(set(labels)) == 3
    np.testing.assert_array_equal(labels, fold_groups([""] * 5, np.full(5, "s"), few)[0])


def test_one_place_has_no_blocks() -> None:
    with pytest.raises(BackboneError, match="one section of 4 spots at 1 different places"):
        fold_groups(["p"] * 4, np.full(4, "s"), np.zeros((4, 2)))
