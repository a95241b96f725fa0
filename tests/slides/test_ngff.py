"""OME-NGFF images written by hand with zarr, in the versions and shapes that are about, and by spatialdata."""

import json
import warnings

import numpy as np
import pytest

from genrag_cli.errors import SlideError
from genrag_cli.slides import open_slide
from genrag_cli.slides.mpp import resolve_pixel_size
from genrag_cli.testing.slide_contract import SlideContract


def shrink(pixels, factor):
    h, w = (side // factor * factor for side in pixels.shape[:2])
    parts = pixels[:h, :w].reshape(h // factor, factor, w // factor, factor, -1)
    return parts.mean(axis=(1, 3)).round().astype(np.uint8)


def write_ngff(
    path, pixels, *, version="0.5", axes="cyx", factors=(4,), chunk=128, shards=False, labels=None, unit=None,
    scale=(0.5, 0.5), systems=(),
):  # fmt: skip
    """An image of (h, w, channels) pixels; `scale` is y, x of level 0 in `unit`."""
    import zarr

    zarr_format = 3 if version == "0.5" else 2
    group = zarr.open_group(str(path), mode="w", zarr_format=zarr_format)
    datasets = []
    for i, factor in enumerate((1, *factors)):
        level = pixels if factor == 1 else shrink(pixels, factor)
        data = level.transpose(["yxc".index(a) for a in axes if a in "yxc"])
        data = data.reshape([1 if a in "tz" else level.shape["yxc".index(a)] for a in axes])
        chunks = tuple(
            chunk if a in "yx" else 1 if a == "c" and shards else n for a, n in zip(axes, data.shape, strict=True)
        )
        whole = tuple(4 * chunk if a in "yx" else n for a, n in zip(axes, data.shape, strict=True)) if shards else None
        group.create_array(str(i), data=data, chunks=chunks, shards=whole)
        steps = [factor * dict(zip("yx", scale, strict=True)).get(a, 1.0) for a in axes]
        datasets.append({"path": str(i), "coordinateTransformations": [{"type": "scale", "scale": steps}]})
    named = [{"name": a, "type": "space", "unit": unit} if a in "zyx" and unit else {"name": a} for a in axes]
    scales = {"axes": named, "datasets": datasets, "version": version}
    if systems:
        scales["coordinateTransformations"] = list(systems)
    image = {"multiscales": [scales]}
    if labels:
        image["omero"] = {"channels": [{"label": label} for label in labels]}
    group.attrs.update({"ome": {**image, "version": version}} if version == "0.5" else image)
    return path


@pytest.fixture(scope="session")
def pixels(section):
    """Tissue and glass, (600, 700, 3)."""
    return np.ascontiguousarray(section[100:700, 300:1000])


@pytest.fixture(scope="session")
def images(tmp_path_factory, pixels):
    """One image of each kind, by name."""
    folder = tmp_path_factory.mktemp("ngff")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import spatialdata
        from spatialdata.models import Image2DModel

        image = Image2DModel.parse(pixels.transpose(2, 0, 1), dims=("c", "y", "x"), scale_factors=[2])
        spatialdata.SpatialData(images={"he": image}).write(folder / "S.zarr")
    return {
        "zarr 3": write_ngff(folder / "he_image", pixels),
        "zarr 2": write_ngff(folder / "0", pixels, version="0.4", axes="tczyx", chunk=100, labels=["R", "G", "B"]),
        "shards": write_ngff(folder / "he", pixels, axes="yxc", factors=(), shards=True, chunk=64),
        "spatialdata": folder / "S.zarr" / "images" / "he",
    }


class TestNgff(SlideContract):
    @pytest.fixture
    def path(self, images):
        return images["zarr 3"]


class TestNgffOfZarr2(SlideContract):
    @pytest.fixture
    def path(self, images):
        return images["zarr 2"]


class TestNgffInShards(SlideContract):
    @pytest.fixture
    def path(self, images):
        return images["shards"]


class TestNgffOfSpatialData(SlideContract):
    @pytest.fixture
    def path(self, images):
        return images["spatialdata"]


@pytest.mark.parametrize(
    "options",
    [{}, {"version": "0.4"}, {"axes": "yxc"}, {"axes": "tczyx"}, {"shards": True, "chunk": 64}, {"chunk": 4000}],
    ids=["0.5", "0.4", "interleaved", "5-d", "shards", "one chunk"],
)
def test_pixels_are_those_that_were_written(tmp_path, pixels, options):
    with open_slide(write_ngff(tmp_path / "he", pixels, **options)) as slide:
        assert slide.size == (pixels.shape[1], pixels.shape[0])
        np.testing.assert_array_equal(slide.read_region(300, 110, 333, 270, 0), pixels[110:380, 300:633])
        np.testing.assert_array_equal(slide.read_region(10, 20, 99, 88, 1), shrink(pixels, 4)[20:108, 10:109])


def test_channels_are_taken_by_their_names(tmp_path, pixels):
    path = write_ngff(tmp_path / "he", pixels[..., ::-1], labels=["blue", "green", "red"])
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read_region(300, 500, 50, 50, 0), pixels[500:550, 300:350])


def test_what_is_transparent_is_white(tmp_path, pixels):
    alpha = np.zeros((*pixels.shape[:2], 1), np.uint8)
    alpha[:, :350] = 255
    with open_slide(write_ngff(tmp_path / "he", np.concatenate([pixels, alpha], axis=2))) as slide:
        np.testing.assert_array_equal(slide.read_region(300, 500, 50, 9, 0), pixels[500:509, 300:350])
        assert (slide.read_region(350, 500, 50, 9, 0) == 255).all()


@pytest.mark.parametrize(
    ("pixels", "labels"),
    [
        (np.zeros((60, 70, 3), np.uint8), ["DAPI", "18S", "CD45"]),
        (np.zeros((60, 70, 2), np.uint8), None),
        (np.zeros((60, 70, 3), np.uint16), None),
        (np.zeros((60, 70, 3), np.uint8), ["r", "g", "g"]),
    ],
)
def test_what_is_not_rgb_is_refused(tmp_path, pixels, labels):
    path = write_ngff(tmp_path / "if", pixels, factors=(), labels=labels)
    with pytest.raises(SlideError, match="expected"):
        open_slide(path)


@pytest.mark.parametrize(
    ("unit", "expected"), [("micrometer", 0.5), ("nanometer", 0.0005), (None, None), ("pixel", None)]
)
def test_the_pixel_size_is_the_scale_of_axes_with_a_unit_of_length(tmp_path, pixels, unit, expected):
    with open_slide(write_ngff(tmp_path / "he", pixels, unit=unit)) as slide:
        found = slide.pixel_size_candidates()
    assert [value for _, value in found] == ([] if expected is None else [pytest.approx(expected)])


def test_a_named_system_in_micrometres_gives_the_pixel_size_too(tmp_path, pixels):
    axes = [{"name": "c"}, {"name": "y", "unit": "micrometer"}, {"name": "x", "unit": "micrometer"}]
    steps = [{"type": "translation", "translation": [0, 5, 5]}, {"type": "scale", "scale": [1, 0.25, 0.25]}]
    system = {"type": "sequence", "transformations": steps, "output": {"name": "aligned", "axes": axes}}
    with open_slide(write_ngff(tmp_path / "he", pixels, scale=(1.0, 1.0), systems=[system])) as slide:
        pixel_size, _ = resolve_pixel_size(slide.pixel_size_candidates())
    assert (pixel_size.mpp, pixel_size.source) == (0.25, "OME-NGFF aligned scale")


def test_pixels_that_are_not_square_are_refused(tmp_path, pixels):
    with (
        open_slide(write_ngff(tmp_path / "he", pixels, unit="micrometer", scale=(0.5, 0.6))) as slide,
        pytest.raises(SlideError, match="not square"),
    ):
        slide.pixel_size_candidates()


def test_chunks_that_are_not_stored_are_said(tmp_path, pixels):
    path = write_ngff(tmp_path / "he", pixels, factors=())
    (path / "0" / "c" / "0" / "3" / "3").unlink()
    with open_slide(path) as slide:
        assert "1 of 30 chunks of level 0 are not stored" in slide.notes[0]


def test_a_damaged_chunk_is_named_when_it_is_read(tmp_path, pixels):
    path = write_ngff(tmp_path / "he", pixels, factors=())
    (path / "0" / "c" / "0" / "3" / "3").write_bytes(b"damaged")
    with open_slide(path) as slide, pytest.raises(SlideError, match="cannot decode chunk 3, 3"):
        slide.read_region(400, 400, 60, 60, 0)


@pytest.mark.parametrize("change", [{"axes": [{"name": "c"}]}, {"datasets": []}, {"datasets": [{"path": "9"}]}])
def test_metadata_that_lead_nowhere_are_refused(tmp_path, pixels, change):
    path = write_ngff(tmp_path / "he", pixels)
    stated = json.loads((path / "zarr.json").read_text())
    stated["attributes"]["ome"]["multiscales"][0].update(change)
    (path / "zarr.json").write_text(json.dumps(stated))
    with pytest.raises(SlideError, match="cannot be read as an OME-NGFF image"):
        open_slide(path)


def test_the_digest_is_of_the_pixels_and_not_of_how_they_are_aligned(tmp_path, pixels):
    digests = []
    for i, (drawn, scale) in enumerate([(pixels, 1.0), (pixels, 2.0), (pixels[::-1], 1.0)]):
        with open_slide(write_ngff(tmp_path / str(i), drawn, scale=(scale, scale))) as slide:
            digests.append(slide.digest())
    assert digests[0] == digests[1] != digests[2]


def test_of_a_store_its_images_are_named(tmp_path, pixels):
    import zarr

    zarr.open_group(str(tmp_path / "S.zarr"), mode="w")
    write_ngff(tmp_path / "S.zarr" / "images" / "he", pixels)
    with pytest.raises(SlideError, match=r"S.zarr.images.he"):
        open_slide(tmp_path / "S.zarr")
