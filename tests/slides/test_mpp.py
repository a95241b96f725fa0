import pytest

from genrag_cli.errors import SlideError, UsageError
from genrag_cli.slides import open_slide, resolve_pixel_size

VENDOR, TIFF = ("aperio property", 0.25), ("TIFF resolution", 0.252)


@pytest.mark.parametrize(
    ("given", "pitch", "candidates", "source", "value"),
    [
        (0.249, 0.251, [VENDOR, TIFF], "--mpp or manifest", 0.249),
        (None, 0.251, [VENDOR, TIFF], "spot pitch", 0.251),
        (None, None, [VENDOR, TIFF], "aperio property", 0.25),
        (None, None, [TIFF], "TIFF resolution", 0.252),
    ],
)
def test_the_first_source_decides_and_the_others_are_kept(given, pitch, candidates, source, value):
    size, warnings = resolve_pixel_size(candidates, given=given, pitch=pitch)
    assert (size.source, size.mpp) == (source, value)
    assert len(size.others) == len(candidates) + (given is not None) + (pitch is not None) - 1
    assert warnings == []


def test_disagreement_beyond_5_percent_names_both():
    size, warnings = resolve_pixel_size([VENDOR, ("TIFF resolution", 0.2626)])
    assert size.mpp == 0.25
    assert len(warnings) == 1
    for word in ("0.25 um/px (aperio property)", "0.2626 um/px (TIFF resolution)"):
        assert word in warnings[0]
    assert resolve_pixel_size([VENDOR, ("TIFF resolution", 0.2624)])[1] == []


def test_strict_makes_disagreement_an_error():
    with pytest.raises(SlideError, match=r"aperio property.*TIFF resolution"):
        resolve_pixel_size([VENDOR, ("TIFF resolution", 0.5)], strict=True)
    assert resolve_pixel_size([VENDOR, TIFF], strict=True)[0].mpp == 0.25


@pytest.mark.parametrize("absurd", [352.8, 5.01, 0.049, 0.0, -0.5, float("nan"), float("inf")])
def test_implausible_values_are_left_out_with_a_word(absurd):
    size, warnings = resolve_pixel_size([("aperio property", absurd), TIFF])
    assert size.source == "TIFF resolution"
    assert size.others == ()
    assert "aperio property" in warnings[0]


def test_an_implausible_value_given_by_hand_is_refused():
    with pytest.raises(UsageError, match="250 um/px was given"):
        resolve_pixel_size([VENDOR], given=250)


def test_no_value_is_refused_with_the_remedy():
    with pytest.raises(SlideError, match="found nothing") as caught:
        resolve_pixel_size([])
    assert "--mpp" in caught.value.hint


@pytest.mark.real
def test_the_absurd_resolution_of_boxes_is_not_believed(shared_data):
    with open_slide(shared_data / "wsi" / "openslide_fixtures" / "boxes.tiff") as slide:
        with pytest.raises(SlideError, match=r"352\.778 \(TIFF resolution\)"):
            resolve_pixel_size(slide.pixel_size_candidates())
        size, warnings = resolve_pixel_size(slide.pixel_size_candidates(), given=0.5)
    assert size.mpp == 0.5
    assert "352.778" in warnings[0]


@pytest.mark.real
def test_the_svs_tells_its_pixel_size(shared_data):
    with open_slide(shared_data / "wsi" / "CMU-1-Small-Region.svs") as slide:
        size, warnings = resolve_pixel_size(slide.pixel_size_candidates())
    assert (size.mpp, size.source, warnings) == (0.499, "aperio property", [])
