"""Which weights and options belong to which backbone."""

import re
from pathlib import Path

import pytest

from genrag_cli.backbones.base import BackboneSheet, Loading, WeightsFile
from genrag_cli.errors import UsageError
from genrag_cli.pipeline import loading
from genrag_cli.pipeline.loading import parse_loading

PARTS = {
    "uni": ("",),
    "stem": ("", "uni", "conch"),
    "timm": ("",),
    "timm:resnet18": ("",),
    "timm:resnet18.a1": ("", "head"),
    "bare": None,
    "pickled": ("",),
}


def sheet_of(name):
    if PARTS[name] is None:
        return None
    return BackboneSheet(
        name=name, kind="encoder", dim=1, tile_px=8, licence="MIT", feature="", source="",
        weights=tuple(WeightsFile(part=part) for part in PARTS[name]),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "read_sheet", sheet_of)
    monkeypatch.setattr(loading, "takes", lambda name, keyword: (name, keyword) == ("pickled", "unsafe_pickle"))
    monkeypatch.chdir(tmp_path)
    for name in ("w.bin", "a=b.bin", "stem=old.bin", "v.bin"):
        Path(name).touch()
    Path("folder").mkdir()


@pytest.mark.parametrize(
    ("names", "texts", "expected"),
    [
        (["uni"], [], {"uni": {}}),
        (["uni"], ["w.bin"], {"uni": {"": "w.bin"}}),
        (["uni"], ["folder"], {"uni": {"": "folder"}}),
        (["uni"], ["uni=w.bin"], {"uni": {"": "w.bin"}}),
        (["uni"], ["a=b.bin"], {"uni": {"": "a=b.bin"}}),
        (["uni"], ["uni=a=b.bin"], {"uni": {"": "a=b.bin"}}),
        (["uni"], ["./stem=old.bin"], {"uni": {"": "stem=old.bin"}}),
        (["uni"], ["stem=old.bin"], {"uni": {"": "stem=old.bin"}}),
        (["stem"], ["w.bin", "uni=v.bin", "conch=folder"], {"stem": {"": "w.bin", "uni": "v.bin", "conch": "folder"}}),
        (["stem"], ["stem:uni=v.bin", "stem=w.bin"], {"stem": {"": "w.bin", "uni": "v.bin"}}),
        (["stem", "uni"], ["uni=w.bin", "stem:uni=v.bin"], {"stem": {"uni": "v.bin"}, "uni": {"": "w.bin"}}),
        (
            ["timm:resnet18", "timm:resnet18.a1", "uni"],
            ["timm:resnet18=w.bin", "timm:resnet18.a1=v.bin", "timm:resnet18.a1:head=folder"],
            {"timm:resnet18": {"": "w.bin"}, "timm:resnet18.a1": {"": "v.bin", "head": "folder"}, "uni": {}},
        ),
        (["timm:resnet18"], ["timm:resnet18=w.bin"], {"timm:resnet18": {"": "w.bin"}}),
        (["timm", "timm:resnet18"], ["timm:resnet18=w.bin"], {"timm": {}, "timm:resnet18": {"": "w.bin"}}),
        (["bare"], ["tower=w.bin", "a=b.bin"], {"bare": {"tower": "w.bin", "": "a=b.bin"}}),
    ],
)
def test_weights_go_where_they_are_said_to(names, texts, expected):
    found = parse_loading(names, texts, [], False)
    assert list(found) == names
    for name, files in expected.items():
        assert found[name].weights == (Path(files[""]) if "" in files else None)
        assert found[name].parts == {part: Path(path) for part, path in files.items() if part}


@pytest.mark.parametrize(
    ("names", "texts", "said", "remedy"),
    [
        (["uni"], ["gone.bin"], "gone.bin does not exist", "Correct the path."),
        (["uni"], ["uni=gone.bin"], "--weights uni=gone.bin: gone.bin does not exist", "Correct the path."),
        (["uni"], ["unii=w.bin"], "unii=w.bin does not exist", "unii is no backbone asked for.*Did you mean uni"),
        (["stem"], ["conk=w.bin"], "conk=w.bin does not exist", "Did you mean conch"),
        (["uni"], ["some/where=x.bin"], "some/where=x.bin does not exist", "Correct the path."),
        (["uni", "stem"], ["w.bin"], "for which of the backbones uni, stem", "--weights uni=w.bin"),
        (["uni", "stem"], ["conch=w.bin"], "for which of the backbones uni, stem", "--weights uni:conch=w.bin"),
        (["uni"], ["w.bin", "uni=v.bin"], "the file of uni was given before", "once"),
        (["stem"], ["uni=w.bin", "stem:uni=v.bin"], "uni of stem was given before", "once"),
        (["uni"], ["stem:uni=w.bin"], "does not exist", "stem:uni is no backbone asked for"),
    ],
)
def test_weights_that_could_be_several_or_none_are_refused(names, texts, said, remedy):
    with pytest.raises(UsageError) as caught:
        parse_loading(names, texts, [], False)
    assert said in caught.value.message
    assert re.search(remedy, caught.value.hint), caught.value.hint


@pytest.mark.parametrize(
    ("names", "texts", "expected"),
    [
        (["uni"], ["steps=20", "note=a=b", "empty="], {"uni": {"steps": "20", "note": "a=b", "empty": ""}}),
        (["uni"], ["uni:steps=20"], {"uni": {"steps": "20"}}),
        (["uni", "stem"], ["stem:steps=20", "uni:steps=5"], {"uni": {"steps": "5"}, "stem": {"steps": "20"}}),
        (["timm:resnet18"], ["timm:resnet18:size=64"], {"timm:resnet18": {"size": "64"}}),
        (["stem"], ["stem=1"], {"stem": {"stem": "1"}}),
    ],
)
def test_options_go_where_they_are_said_to(names, texts, expected):
    found = parse_loading(names, [], texts, False)
    assert {name: dict(one.options) for name, one in found.items() if one.options} == expected


@pytest.mark.parametrize(
    ("names", "text", "said"),
    [
        (["uni"], "steps", "not a key and its value"),
        (["uni"], "=20", "not a key and its value"),
        (["uni"], "uni:=20", "not a key and its value"),
        (["uni", "stem"], "steps=20", "for which of the backbones uni, stem"),
        (["uni"], "stem:steps=20", "backbone stem is not among those asked for"),
    ],
)
def test_options_without_key_value_or_owner_are_refused(names, text, said):
    with pytest.raises(UsageError, match=said) as caught:
        parse_loading(names, [], [text], False)
    assert caught.value.hint


def test_an_option_given_twice_is_refused():
    with pytest.raises(UsageError, match="steps of uni was given before"):
        parse_loading(["uni"], [], ["steps=1", "uni:steps=2"], False)


@pytest.mark.parametrize(
    ("names", "trusted"),
    [(["uni"], {"uni"}), (["uni", "pickled"], {"pickled"}), (["uni", "stem"], {"uni", "stem"})],
    ids=["the only one", "the one that knows it", "none knows it, so loading refuses"],
)
def test_unsafe_pickles_are_for_those_that_know_the_flag(names, trusted):
    assert {name for name, one in parse_loading(names, [], [], True).items() if one.unsafe_pickle} == trusted
    assert not any(one.unsafe_pickle for one in parse_loading(names, [], [], False).values())


def test_nothing_given_is_nothing():
    assert parse_loading(["uni", "uni"], [], [], False) == {"uni": Loading()}
