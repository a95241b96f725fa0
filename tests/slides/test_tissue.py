import numpy as np
import pytest
from PIL import Image, ImageDraw

from genrag_cli.slides import find_tissue, open_slide, overview, tissue_mask, tissue_share
from genrag_cli.slides import tissue as tissue_module
from genrag_cli.types import PixelSize
from genrag_cli.units import Mpp

ONE = PixelSize(Mpp(1.0), "test")
LILAC, GREY, WHITE = (225, 211, 227), (179, 181, 178), (255, 255, 255)


def paint(glass, side=300, seed=0):
    """An overview at 8 um/px: a square of tissue, and where it is."""
    rng = np.random.default_rng(seed)
    out = np.tile(np.array(glass, float), (side, side, 1))
    inside = np.zeros((side, side), bool)
    inside[100:220, 80:200] = True
    out[inside] *= np.array([0.8, 0.55, 0.75]) ** rng.uniform(0.3, 1.5, (inside.sum(), 1))
    return np.clip(out + rng.normal(0, 0.5, out.shape), 0, 255).astype(np.uint8), inside


def overlap(mask, truth):
    return (mask & truth).sum() / (mask | truth).sum()


@pytest.mark.parametrize("how", ["density", "otsu"])
@pytest.mark.parametrize("glass", [WHITE, LILAC, GREY])
def test_tissue_is_found_on_glass_of_any_colour(glass, how):
    rgb, truth = paint(glass)
    assert overlap(tissue_mask(rgb, how=how), truth) > 0.9


@pytest.mark.parametrize("how", ["density", "otsu"])
@pytest.mark.parametrize("glass", [WHITE, LILAC, GREY, (0, 0, 0)])
@pytest.mark.parametrize("noise", [0.0, 2.0])
def test_a_blank_slide_has_no_tissue(glass, noise, how):
    rng = np.random.default_rng(0)
    blank = np.clip(np.array(glass) + rng.normal(0, noise, (300, 300, 3)), 0, 255).astype(np.uint8)
    assert not tissue_mask(blank, how=how).any()


@pytest.mark.parametrize("how", ["density", "otsu"])
@pytest.mark.parametrize("glass", [WHITE, LILAC])
def test_pen_dots_and_a_smear_are_not_tissue(glass, how):
    rgb, truth = paint(glass)
    image = Image.fromarray(rgb)
    draw = ImageDraw.Draw(image)
    for i, pen in enumerate([(30, 40, 150), (20, 120, 60), (30, 30, 30), (200, 30, 40)]):
        draw.line([(20 + 70 * i, 20), (60 + 70 * i, 70)], fill=pen, width=12)
    for x in range(20, 280, 16):
        draw.ellipse([x, 250, x + 10, 260], fill=(200, 198, 202))
    pixels = np.asarray(image).astype(float)
    smear = np.exp(-(((np.arange(300) - 215) / 25.0) ** 2))[None, :, None] * [0.0, 25.0, 10.0]
    smeared = np.where(truth[..., None], pixels, pixels - smear).clip(0, 255).astype(np.uint8)
    assert overlap(tissue_mask(smeared, how=how), truth) > 0.85


@pytest.mark.parametrize("how", ["density", "otsu"])
def test_black_surroundings_are_not_tissue(how):
    rgb, truth = paint(LILAC)
    rgb[:80], rgb[:, :60] = 0, 0
    assert overlap(tissue_mask(rgb, how=how), truth) > 0.9


def test_pale_tissue_beside_dark_is_kept_by_default_and_lost_to_otsu():
    rgb, truth = paint(WHITE)
    half = rgb.copy()
    half[100:220, 140:200] = 255 - (255 - half[100:220, 140:200]) // 3  # pale, as fat is
    pale = np.zeros_like(truth)
    pale[105:215, 150:195] = True
    assert tissue_mask(half)[pale].mean() > 0.9
    assert tissue_mask(half, how="otsu")[pale].mean() < 0.1


@pytest.mark.parametrize("noise", [0.0, 3.0])
def test_a_faded_slide_keeps_its_tissue_and_noisy_glass_stays_glass(noise):
    rgb, truth = paint(LILAC)
    faded = 255 - (255 - rgb.astype(float)) * 0.5 + np.random.default_rng(1).normal(0, noise, rgb.shape)
    assert overlap(tissue_mask(faded.clip(0, 255).astype(np.uint8)), truth) > 0.9


def test_overview_is_the_exact_mean_of_each_square(tiff_path, section):
    with open_slide(tiff_path) as slide:
        rgb, scale = overview(slide, ONE, um_per_px=10.0)
    means = section.reshape(120, 10, 150, 10, 3).mean(axis=(1, 3))
    assert scale == 0.1
    assert np.abs(rgb - means).max() <= 0.5 + 1e-3


def test_overview_weighs_pixels_that_an_edge_cuts(make_slide):
    ramp = np.zeros((90, 103, 3), np.uint8)
    ramp[:] = np.arange(103)[None, :, None]
    with open_slide(make_slide(ramp, factors=())) as slide:
        rgb, _ = overview(slide, ONE, um_per_px=8.3)
    middles = (np.arange(12) + 0.5) * 8.3 - 0.5  # the mean of a ramp over an interval is its value in the middle
    middles[-1] = (11 * 8.3 + 103) / 2 - 0.5  # the last one reaches to the edge of the slide
    assert np.abs(rgb[0, :, 0] - middles).max() <= 0.51


def test_overview_does_not_depend_on_the_blocks_it_is_read_in(tiff_path, monkeypatch):
    with open_slide(tiff_path) as slide:
        whole, _ = overview(slide, ONE, um_per_px=8.3)
        monkeypatch.setattr(tissue_module, "_BLOCK", (100, 70))
        assert np.array_equal(overview(slide, ONE, um_per_px=8.3)[0], whole)


def test_overview_of_a_large_slide_comes_from_a_coarse_level(tiff_path, monkeypatch):
    with open_slide(tiff_path) as slide:
        fine, scale = overview(slide, ONE)
        monkeypatch.setattr(tissue_module, "LEVEL0_LIMIT", 1000)
        monkeypatch.setattr(slide, "levels", slide.levels)
        read = []
        original = slide.read_region
        monkeypatch.setattr(
            slide, "read_region", lambda x, y, w, h, level: (read.append(level), original(x, y, w, h, level))[1]
        )
        coarse, same_scale = overview(slide, ONE)
    assert set(read) == {1}
    assert (scale, fine.shape) == (same_scale, coarse.shape)
    assert np.abs(fine.astype(int) - coarse).max() <= 1


def test_tissue_of_a_slide_is_its_disc(tiff_path):
    with open_slide(tiff_path) as slide:
        tissue = find_tissue(slide, ONE)
    y, x = (np.mgrid[: tissue.mask.shape[0], : tissue.mask.shape[1]] + 0.5) / tissue.scale
    assert overlap(tissue.mask, (x - 750) ** 2 + (y - 600) ** 2 < 480**2) > 0.9


def test_all_of_the_slide_may_be_tissue(tiff_path):
    with open_slide(tiff_path) as slide:
        tissue = find_tissue(slide, ONE, how="none")
    assert tissue.mask.shape == tissue.overview.shape[:2]
    assert tissue.mask.all()


def test_no_squares_have_no_share():
    assert tissue_share(np.ones((5, 5), bool), 0.1, np.zeros((0, 2)), 20.0).shape == (0,)


def test_share_counts_cut_pixels_and_nothing_outside():
    mask = np.zeros((10, 10), bool)
    mask[:, 5:] = True
    centres = np.array([[50.0, 50], [55, 50], [100, 50], [100, 100], [20, 50]])
    assert tissue_share(mask, 0.1, centres, 20.0) == pytest.approx([0.5, 0.75, 0.5, 0.25, 0])


@pytest.mark.real
@pytest.mark.parametrize("section_name", ["B4", "C2", "C3", "C4", "C5"])
def test_measured_spots_lie_on_tissue_and_the_rest_of_the_glass_does_not(shared_data, section_name):
    table = np.loadtxt(shared_data / "her2st" / "spots" / f"{section_name}_selection.tsv", skiprows=1)
    size = PixelSize(Mpp(200 / 290), "pitch")
    with open_slide(shared_data / "her2st" / "images" / f"{section_name}.jpg", pictures=True) as slide:
        tissue = find_tissue(slide, size)
    assert (tissue_share(tissue.mask, tissue.scale, table[:, 4:6], 290.0) >= 0.5).mean() > 0.97
    spot_area = len(table) * (290 * tissue.scale) ** 2
    assert tissue.mask.sum() < 1.1 * spot_area
    faded = tissue_mask((255 - (255 - tissue.overview.astype(float)) * 0.5).astype(np.uint8))
    assert overlap(faded, tissue.mask) > 0.9


@pytest.mark.real
def test_a_black_background_is_not_tissue(shared_data):
    path = shared_data / "her2st" / "lowres" / "A1_HE_image_dark.png"
    with open_slide(path, pictures=True) as slide:
        tissue = find_tissue(slide, PixelSize(Mpp(2.4), "pitch"))
    assert not tissue.mask[tissue.overview.max(axis=2) < 45].any()
    assert 0.3 < tissue.mask.mean() < 0.4
