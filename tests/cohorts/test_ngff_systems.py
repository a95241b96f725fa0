"""Transformations as the spatialdata package writes them, against what it makes of them itself."""

import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrag_cli.cohorts import affine
from genrag_cli.cohorts.ngff_systems import StoreImage, element_systems, read_image
from genrag_cli.errors import CohortError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import spatialdata
    from spatialdata.models import Image2DModel, ShapesModel
    from spatialdata.transformations import Affine, Identity, MapAxis, Scale, Sequence, Translation, get_transformation

NUMBERS = st.floats(0.25, 4).map(lambda v: round(v, 3))
STEPS = st.one_of(
    st.just(Identity()),
    st.just(MapAxis({"x": "y", "y": "x"})),
    st.tuples(NUMBERS, NUMBERS).map(lambda v: Scale(np.array(v), axes=("y", "x"))),
    NUMBERS.map(lambda v: Translation([v], axes=("x",))),
    st.tuples(*[NUMBERS] * 6).map(
        lambda v: Affine(np.array([v[:3], v[3:], (0, 0, 1)]), input_axes=("y", "x"), output_axes=("x", "y"))
    ),
)


def write(folder, one, **options):
    """A store with one image and one shapes element, in two coordinate systems."""
    systems = {"made-up": one, "global": Identity()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pixels = np.zeros((3, 8, 10), np.uint8)
        image = Image2DModel.parse(pixels, dims=("c", "y", "x"), transformations=dict(systems))
        shapes = ShapesModel.parse(np.ones((2, 2)), geometry=0, radius=1.0, transformations=dict(systems))
        store = spatialdata.SpatialData(images={"image": image}, shapes={"spots": shapes})
        store.write(folder / "S.zarr", **options)
    return store


@settings(max_examples=12, deadline=None)
@given(st.lists(STEPS, min_size=1, max_size=4))
def test_any_chain_of_transformations_means_what_the_package_says(tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("store")
    store = write(folder, steps[0] if len(steps) == 1 else Sequence(steps))
    read = {
        "spots": element_systems(folder / "S.zarr" / "shapes" / "spots"),
        "image": read_image(folder / "S.zarr" / "images" / "image").systems,
    }
    for name, systems in read.items():
        expected = get_transformation(store[name], "made-up").to_affine_matrix(("x", "y"), ("x", "y"))
        np.testing.assert_allclose(affine.to_matrix(systems["made-up"].to_system), expected, atol=1e-9)
        assert systems["global"].to_system == affine.IDENTITY
        assert systems["global"].unit_um is None


def test_the_size_and_channels_of_an_image_are_known(tmp_path):
    write(tmp_path, Identity())
    image = read_image(tmp_path / "S.zarr" / "images" / "image")
    assert isinstance(image, StoreImage)
    assert image.size == (10, 8)


def edit(path, change):
    """Changes the metadata of an image by hand."""
    stated = json.loads((path / "zarr.json").read_text())
    change(stated["attributes"]["ome"])
    (path / "zarr.json").write_text(json.dumps(stated))
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda ome: ome["omero"]["channels"][0].update(label="DAPI"),
        lambda ome: ome["multiscales"][0]["datasets"][0]["coordinateTransformations"][0].update(scale=[1, 0.5, 0.5]),
    ],
)
def test_fluorescence_and_scales_of_their_own_are_no_slide(tmp_path, change):
    write(tmp_path, Identity())
    assert isinstance(read_image(edit(tmp_path / "S.zarr" / "images" / "image", change)), str)


@pytest.mark.parametrize(
    ("one", "said"),
    [
        ({"type": "byDimension"}, "'byDimension' is not known"),
        ({"type": "affine", "affine": [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]]}, "mixes x and y"),
        ({"type": "scale"}, "cannot be read"),
    ],
)
def test_transformations_that_cannot_be_followed_are_refused(tmp_path, one, said):
    write(tmp_path, Identity())
    path = edit(
        tmp_path / "S.zarr" / "images" / "image",
        lambda ome: [t.pop("type") and t.update(one) for t in ome["multiscales"][0]["coordinateTransformations"]],
    )
    with pytest.raises(CohortError, match=said):
        read_image(path)


def test_a_unit_of_length_of_a_system_is_known(tmp_path):
    write(tmp_path, Identity())

    def change(ome):
        for one in ome["multiscales"][0]["coordinateTransformations"]:
            for axis in one["output"]["axes"]:
                axis["unit"] = "micrometer"

    systems = read_image(edit(tmp_path / "S.zarr" / "images" / "image", change)).systems
    assert {placed.unit_um for placed in systems.values()} == {1.0}
