"""What programs read: `--json`, `--events`, statuses and reports follow their schemas, however a run ends."""

import json
import os
import runpy
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from jsonschema import Draft202012Validator, ValidationError

from genrag_cli.backbones.encoders.stain import Stain
from genrag_cli.stores.claims import Claims

schemas = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("schemas.py"))))
ENDINGS = {"embed": ".zarr.zip", "retrieve": ".h5ad"}


@pytest.fixture(params=["embed", "retrieve"])
def command(request):
    return request.param


@pytest.fixture
def glass(tmp_path):
    """A slide without tissue."""
    image = np.full((1024, 1024, 3), 245, np.uint8)
    size = {"resolution": (1e4, 1e4), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "glass.tif", image, tile=(256, 256), photometric="rgb", metadata=None, **size)
    return tmp_path / "glass.tif"


@pytest.fixture
def say(generag, built_bank, tmp_path, command):
    """`say("--json" or "--events", *slides and options)`: exit code and documents, all of them valid."""

    def run(how, *words):
        common = ("--backbone", "stain", "--bank", built_bank, "--workers", "1", "--out", tmp_path / "out", "-q")
        alpha = ("--alpha", "0.003") if command == "retrieve" else ()
        done = generag(command, *words, *common, *alpha, how)
        assert "Traceback" not in done.err
        for path in (tmp_path / "out").rglob("*.json"):
            schema = schemas.STATUS if path.name.endswith(".status.json") else schemas.REPORT
            validate(schema, json.loads(path.read_text()))
        if how == "--json":
            document = json.loads(done.out)
            validate(schemas.RESULTS[command], document)
            return done.code, document
        events = [json.loads(line) for line in done.out.splitlines()]
        for event in events:
            validate(schemas.EVENT, event)
        assert [e["event"] for e in events].count("run_started") == 1
        assert events[-1]["event"] == "run_ended"
        return done.code, events

    return run


def validate(schema, content):
    Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(content)


def ended(events):
    return {e["name"]: (e["state"], e["skipped"]) for e in events if e["event"] == "slide_ended"}


def states(document):
    return {s["name"]: s["state"] for s in document["slides"]}


@pytest.fixture
def signalled(monkeypatch):
    """A scheduler that asks for an end as soon as tiles are encoded."""
    encode = Stain.encode

    def encode_and_signal(self, pixels):
        os.kill(os.getpid(), signal.SIGTERM)
        return encode(self, pixels)

    monkeypatch.setattr(Stain, "encode", encode_and_signal)


@pytest.mark.parametrize("schema", [*schemas.DOCUMENTS.values(), schemas.EVENT, schemas.STATUS, schemas.REPORT])
def test_schemas_are_schemas_and_refuse_what_is_not_theirs(schema):
    Draft202012Validator.check_schema(schema)
    for wrong in ({}, [{}], {"event": "party"}, {"slides": []}):
        with pytest.raises(ValidationError):
            validate(schema, wrong)


def test_documents_of_good_bad_empty_and_skipped_slides(say, slide, glass):
    code, document = say("--json", slide, "nowhere.svs", glass)
    assert (code, states(document)) == (3, {"P3_1": "done", "nowhere": "failed", "glass": "empty"})
    assert document["run"]["counts"] == {"done": 1, "empty": 1, "failed": 1, "skipped": 0, "held": 0, "planned": 0}
    code, document = say("--json", slide, glass)
    assert (code, states(document)) == (0, {"P3_1": "skipped", "glass": "skipped"})
    code, document = say("--json", "nowhere.svs")
    assert (code, states(document)) == (1, {"nowhere": "failed"})


def test_events_of_good_bad_empty_and_skipped_slides(say, slide, glass):
    code, events = say("--events", slide, "nowhere.svs", glass)
    assert code == 3
    assert ended(events) == {"P3_1": ("done", False), "nowhere": ("failed", False), "glass": ("empty", False)}
    assert [e["name"] for e in events if e["event"] == "slide_started"] == ["P3_1", "nowhere", "glass"]
    assert any(e["event"] == "progress" and e["done"] == e["total"] for e in events)
    assert [e["time"] for e in events] == sorted(e["time"] for e in events)
    code, events = say("--events", slide, glass)
    assert (code, ended(events)) == (0, {"P3_1": ("done", True), "glass": ("empty", True)})
    code, events = say("--events", slide, "--spots", "nowhere.csv")
    assert code == 2
    assert {(name, state) for name, (state, _) in ended(events).items()} == {("P3_1", "failed")}


def test_documents_and_events_of_a_dry_run(say, slide, glass, tmp_path):
    code, document = say("--json", slide, glass, "nowhere.svs", "--dry-run")
    assert (code, states(document)) == (3, {"P3_1": "planned", "glass": "planned", "nowhere": "failed"})
    code, events = say("--events", slide, "--dry-run")
    assert (code, ended(events)) == (0, {"P3_1": ("planned", True)})
    assert not (tmp_path / "out").exists()


def test_documents_and_events_of_slides_that_another_worker_holds(say, slide, glass, tmp_path, command):
    with Claims(60).take(tmp_path / "out" / f"P3_1.stain{ENDINGS[command]}"):
        code, document = say("--json", slide, glass, "--no-wait")
        _, events = say("--events", slide, "--no-wait")
    assert (code, states(document)) == (0, {"glass": "empty", "P3_1": "held"})
    assert ended(events) == {"P3_1": ("held", True)}


@pytest.mark.usefixtures("signalled")
def test_documents_of_a_run_that_was_stopped(say, slide):
    code, document = say("--json", slide, "nowhere.svs")
    assert (code, document["slides"], document["run"]["stopped"]) == (75, [], True)


@pytest.mark.usefixtures("signalled")
def test_events_of_a_run_that_was_stopped(say, slide, glass):
    code, events = say("--events", glass, slide)
    assert (code, ended(events), events[-1]["stopped"]) == (75, {"glass": ("empty", False)}, True)
