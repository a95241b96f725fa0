"""The same embeddings in every layout, rows shuffled, give the same matrix to the last bit."""

import dataclasses
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from genrag_cli.errors import FeaturesError
from genrag_cli.stores.foreign import in_pixels, join_rows, read_features

make = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("write_foreign.py"))))
TRUTH = make.make_truth()
N = len(TRUTH.names)


@pytest.fixture(scope="module", params=list(make.LAYOUTS.values()), ids=list(make.LAYOUTS))
def stored(request, tmp_path_factory):
    """A file of every spot in an order of its own, and where the names of its rows stand if it has none."""
    name = request.param.write.__name__
    folder = tmp_path_factory.mktemp(name)
    order = np.random.default_rng(sum(map(ord, name))).permutation(N)
    t = TRUTH.rows(order)
    names = folder / "names.txt"
    names.write_text("\n".join(t.names) + "\n")
    return SimpleNamespace(layout=request.param, path=request.param.write(folder, t), names=names, order=order)


def read(stored):
    rows = read_features(stored.path, names_from=stored.names if stored.layout.needs_names else None)
    return in_pixels(rows, make.MPP) if stored.layout.in_um else rows


def test_every_layout_gives_the_same_matrix_to_the_last_bit(stored):
    rows = read(stored)
    found = rows.values[join_rows(rows, TRUTH.names, TRUTH.centres, within_px=2)]
    assert found.dtype == np.float32
    assert found.tobytes() == TRUTH.values.tobytes()


def test_every_layout_says_what_its_file_says(stored):
    rows, layout = read_features(stored.path), stored.layout
    assert (rows.kind, rows.path, rows.columns, rows.scale) == (layout.kind, stored.path, None, "")
    assert (rows.names is not None, rows.centres is not None) == (layout.named, layout.placed)
    assert (rows.encoder, rows.mpp, rows.fov_um) == (layout.encoder, layout.mpp, layout.fov_um)
    assert (rows.centres_um is not None) == layout.in_um
    sided = rows.kind in ("trident-h5", "clam-h5", "slide2vec")
    assert rows.side_px == (make.SIDE_PX if sided else None)


def test_a_spot_that_the_file_lacks_is_refused_by_name(stored):
    more = dataclasses.replace(
        TRUTH, names=np.append(TRUTH.names, "LOST-1"), centres=np.vstack([TRUTH.centres, [[500, 700]]])
    )
    with pytest.raises(FeaturesError, match=r"1 of 13 spots are not in it: LOST-1"):
        join_rows(read(stored), more.names, more.centres, within_px=2)


def test_a_row_that_is_no_spot_is_refused_by_name(stored):
    less = TRUTH.rows(np.delete(np.arange(N), 3))
    rows = read(stored)
    what = TRUTH.names[3] if rows.names is not None else r"row \d+ \(244, 100\)"
    with pytest.raises(FeaturesError, match=f"1 of its 12 rows are no spot: {what}"):
        join_rows(rows, less.names, less.centres, within_px=2)


def test_a_file_that_names_nothing_and_places_nothing_is_never_joined_by_row_order(tmp_path):
    path = make.generag_plain(tmp_path, TRUTH)
    with pytest.raises(FeaturesError, match=r"names no spots and places none.*never joined by their order") as caught:
        join_rows(read_features(path), TRUTH.names, TRUTH.centres, within_px=2)
    assert "--names-from" in caught.value.hint
