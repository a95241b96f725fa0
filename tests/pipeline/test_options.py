"""Options: what cannot be is refused when it is said, not when it is used."""

import pytest

from genrag_cli.errors import UsageError
from genrag_cli.pipeline.build_bank import BankOptions
from genrag_cli.pipeline.lay_out import choose_geometry
from genrag_cli.pipeline.options import SlideOptions, SolveOptions


@pytest.mark.parametrize("kind", [SlideOptions, BankOptions])
@pytest.mark.parametrize("option", [{"fov_um": 0.0}, {"pitch_um": -1.0}, {"fov_um": float("nan")}])
def test_lengths_are_above_zero(kind, option):
    with pytest.raises(UsageError, match=r"--(fov|pitch)-um"):
        kind(**option)


@pytest.mark.parametrize("option", [{"active": 0}, {"gap": 0.0}, {"omega": -0.1}, {"gamma": 0.1}, {"preset": "x"}])
def test_problems_that_cannot_be_are_refused(option):
    with pytest.raises(UsageError):
        SolveOptions(**option)


def test_presets_fill_in_what_is_not_said():
    assert (SolveOptions().wanted_references, SolveOptions(active=7).wanted_references) == (50, 7)
    assert (SolveOptions("paper").weight, SolveOptions("paper", omega=0.0).weight) == (0.75, 0.0)


def test_geometry_is_the_askers_then_the_banks_then_the_backbones():
    bank = {"fov_um": 200.0, "pitch_um": 100.0}
    assert choose_geometry(SlideOptions(), bank, None, 0.5) == (200.0, 100.0)
    assert choose_geometry(SlideOptions(fov_um=50.0), bank, None, 0.5) == (50.0, 100.0)
    assert choose_geometry(SlideOptions(), None, 112.0, 0.5) == (112.0, 112.0)
    with pytest.raises(UsageError, match="no field of view"):
        choose_geometry(SlideOptions(), None, None, 0.5)


def test_the_published_crop_depends_on_the_slide():
    bank = {"crop": "stem", "spot_um": 100.0, "pitch_um": 200.0}
    assert choose_geometry(SlideOptions(), bank, 112.0, 0.5) == (112.0, 200.0)
    assert choose_geometry(SlideOptions(), bank, 112.0, 1.0) == (224.0, 200.0)
