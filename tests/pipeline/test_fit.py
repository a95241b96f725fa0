"""A query from another backbone than the bank's is refused, naming what is on both sides."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from genrag_cli.errors import BackboneError, BankError, FeaturesError, UsageError
from genrag_cli.pipeline.fit import (
    card_of_features,
    check_fit,
    differences,
    expect_features,
    expect_fov,
    expect_views,
    identity,
)
from genrag_cli.pipeline.options import SlideOptions
from genrag_cli.stores.foreign import ForeignRows
from genrag_cli.types import BackboneCard

CARD = BackboneCard("uni", "r1", 8, 224, "licence", "a" * 64, scale="counts", genes_sha256="b" * 64)


def bank_of(card=CARD, fov_um=112.0):
    return SimpleNamespace(
        card=card,
        folder=Path("b.zarr"),
        geometry={"fov_um": fov_um, "pitch_um": 100.0, "crop": "fov"},
        anchors=np.array(["A"]),
    )


def backbone_of(**changes):
    return SimpleNamespace(card=dataclasses.replace(CARD, **changes), encode=None)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("revision", "r2", "revision r2"),
        ("dim", 9, "dim 9"),
        ("weights_sha256", "c" * 64, f"weights with digest {'c' * 64}"),
        ("views", 7, "view count 7"),
        ("scale", "log2_counts", "scale log2_counts"),
        ("genes_sha256", "d" * 64, f"genes with digest {'d' * 64}"),
    ],
)
def test_each_difference_is_refused_naming_both(field, value, words):
    with pytest.raises(BackboneError) as caught:
        check_fit(bank_of(), backbone_of(**{field: value}), SlideOptions())
    assert words in caught.value.message
    assert str(getattr(CARD, field)) in caught.value.message
    assert caught.value.hint


def test_field_of_view_is_refused_naming_both():
    with pytest.raises(BankError, match=r"--fov-um 55 asked; the bank b\.zarr was built with fov_um 112"):
        check_fit(bank_of(), backbone_of(), SlideOptions(fov_um=55))


def test_words_on_a_card_decide_nothing():
    other = dataclasses.replace(CARD, feature="other words", licence="another", fov_um=1.0)
    assert differences(CARD, other) == []
    assert identity(CARD) == identity(other)
    check_fit(bank_of(), SimpleNamespace(card=other, encode=None), SlideOptions())


def test_views_of_the_bank_are_taken_and_others_refused():
    bank = bank_of(dataclasses.replace(CARD, views=7))
    assert expect_views(None, bank) == expect_views(7, bank) == 7
    with pytest.raises(UsageError, match=r"--views 1 asked; .* built with 7"):
        expect_views(1, bank)


def rows_of(**changes):
    made = {"values": np.ones((3, 8), np.float32), "names": np.array(["a", "b", "c"]), "centres": None}
    return ForeignRows(path=Path("f.h5"), kind="trident-h5", **{**made, **changes})


def expect(rows, bank, **options):
    return expect_features(bank, rows, SlideOptions(), **{"same_encoder": False, "has_guess": True, **options})


@pytest.mark.parametrize("word", ["uni_v1", "MahmoodLab/UNI", "UNI"])
def test_word_of_a_file_that_holds_the_backbones_name_is_its(word):
    assert any("digest" in doubt for doubt in expect(rows_of(encoder=word, fov_um=112.0), bank_of()))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({"encoder": "virchow2"}, ("virchow2", "built with uni")),
        ({"values": np.ones((3, 4), np.float32)}, ("4 numbers", "has 8")),
    ],
)
def test_features_of_something_else_are_refused_naming_both(rows, words):
    with pytest.raises(FeaturesError) as caught:
        expect(rows_of(**rows), bank_of())
    assert all(word in caught.value.message for word in words)
    assert caught.value.hint


@pytest.mark.parametrize(("made", "fits"), [
    ({"fov_um": 256.0}, False), ({"fov_um": 113.0}, True), ({"fov_um": 114.0}, False),
    ({"side_px": 224.0}, True), ({"side_px": 230.0}, True), ({"side_px": 256.0}, False), ({}, True),
])  # fmt: skip
def test_tiles_of_another_size_on_the_tissue_are_refused_naming_both(made, fits):
    rows = rows_of(**made)
    if fits:
        expect_fov(bank_of(), rows, mpp=0.5)
        return
    with pytest.raises(FeaturesError, match=r"tiles of (256|128|114) um, the bank b\.zarr of tiles of 112 um"):
        expect_fov(bank_of(), rows, mpp=0.5)


def test_other_word_may_be_vouched_for():
    expect(rows_of(encoder="my-vit"), bank_of(), same_encoder=True)


def test_features_of_a_model_need_its_first_guess_too():
    with pytest.raises(FeaturesError, match="first guess of uni is its own"):
        expect(rows_of(), bank_of(), has_guess=False)


def test_bank_of_features_compares_with_what_their_files_said():
    bank = bank_of(card_of_features("mine", rows_of(encoder="dino-x", fov_um=50.0), 0.5))
    expect(rows_of(encoder="dino-x"), bank)
    with pytest.raises(FeaturesError, match="dino-x2"):
        expect(rows_of(encoder="dino-x2"), bank)
    expect_fov(bank, rows_of(side_px=100.0), 0.5)
    with pytest.raises(FeaturesError, match="60 um"):
        expect_fov(bank, rows_of(fov_um=60.0), 0.5)
