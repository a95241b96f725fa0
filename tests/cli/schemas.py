"""What `--json`, `--events`, statuses and run reports look like: JSON schemas, draft 2020-12.

A table without `additionalProperties: False` holds what a command adds of its own.
"""

from typing import Any

DRAFT = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
SECONDS: Schema = {"type": "object", "additionalProperties": {"type": "number"}}
MAYBE_COUNT: Schema = {"type": ["integer", "null"], "minimum": 0}
TIME: Schema = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+00:00$"}
OUTCOME: Schema = {"enum": ["done", "empty", "failed", "skipped", "held", "planned"]}
STATE: Schema = {"enum": ["running", "done", "empty", "failed", "stopped"]}


def closed(optional: Schema | None = None, /, **fields: Schema) -> Schema:
    """An object that has all of these fields, may have the optional ones, and has no others."""
    return {
        "type": "object", "properties": {**fields, **(optional or {})}, "required": sorted(fields),
        "additionalProperties": False,
    }  # fmt: skip


RUN_FIELDS: Schema = {
    "command": {"enum": ["retrieve", "embed"]},
    "argv": TEXT,
    "generag_version": TEXT,
    "worker": {"type": "string", "pattern": r"^.+:\d+$"},
    "stopped": {"type": "boolean"},
    "elapsed_s": {"type": "number", "minimum": 0},
    "counts": closed(**dict.fromkeys(OUTCOME["enum"], COUNT)),
    "seconds": SECONDS,
    "tiles": COUNT,
    "tiles_per_s": {"type": ["number", "null"], "exclusiveMinimum": 0},
    "bad_tiles": COUNT,
    "peak_memory": COUNT,
}
REPORTED_SLIDE = closed(
    slide=TEXT, name=TEXT, state=OUTCOME, output=TEXT, spots=MAYBE_COUNT, bad_tiles=COUNT, reason=TEXT, hint=TEXT,
    seconds=SECONDS, held_by=TEXT,
)  # fmt: skip
REPORT: Schema = {"$schema": DRAFT, **closed(**RUN_FIELDS, slides={"type": "array", "items": REPORTED_SLIDE})}
"""A file in `runs`."""


def _result(**of_command: Schema) -> Schema:
    """The document of `--json`, whose slides failed or have what the command says of them."""
    about = {"slide": TEXT, "name": TEXT, "state": OUTCOME}
    failed = closed(**about, error={"type": "string", "minLength": 1}, hint=TEXT)
    stood = closed(**about, **of_command, spots=MAYBE_COUNT, skipped={"type": "boolean"})
    return {
        "$schema": DRAFT,
        **closed(slides={"type": "array", "items": {"oneOf": [failed, stood]}}, run=REPORT),
    }  # fmt: skip


MAYBE_NUMBER: Schema = {"type": ["number", "null"], "minimum": 0}
RESULTS = {
    "retrieve": _result(
        prediction=TEXT, median_references=MAYBE_NUMBER, worst_gap=MAYBE_NUMBER, stalled=MAYBE_COUNT,
        mean_passes=MAYBE_NUMBER,
    ),
    "embed": _result(embeddings=TEXT),
}  # fmt: skip
"""By command."""


def _event(name: str, optional: Schema | None = None, /, **fields: Schema) -> Schema:
    return closed(optional, event={"const": name}, time=TIME, **fields)


EVENT: Schema = {
    "$schema": DRAFT,
    "oneOf": [
        _event("run_started", command={"enum": ["retrieve", "embed"]}, slides=COUNT),
        _event("log", level={"enum": ["info", "warning"]}, text=TEXT),
        _event("progress", stage=TEXT, done=COUNT, total={"type": "integer", "minimum": 1}),
        _event("slide_started", slide=TEXT, name=TEXT, output=TEXT),
        _event(
            "slide_ended", slide=TEXT, name=TEXT, state=OUTCOME, spots=MAYBE_COUNT, output=TEXT,
            skipped={"type": "boolean"}, reason=TEXT, seconds=SECONDS,
        ),
        _event("run_ended", **RUN_FIELDS),
    ],
}  # fmt: skip
"""A line of `--events`."""

STATUS: Schema = {
    "$schema": DRAFT,
    **closed(
        state=STATE, slide=TEXT, output=TEXT, command={"enum": ["retrieve", "embed"]}, options=TEXT,
        slide_digest=TEXT, key=TEXT,
        source={"oneOf": [{"type": "null"}, {"type": "array", "items": COUNT, "minItems": 2, "maxItems": 2}]},
        size=COUNT, sha256=TEXT, spots=MAYBE_COUNT, bad_tiles=COUNT, reason=TEXT, hint=TEXT,
        attempts={"type": "integer", "minimum": 1}, began=TIME, ended={"oneOf": [TIME, {"const": ""}]},
        seconds=SECONDS, peak_memory=COUNT, worker=TEXT, facts={"type": "object"},
        warnings={"type": "array", "items": TEXT}, format={"const": 1},
    ),
}  # fmt: skip
"""A file beside an output."""
