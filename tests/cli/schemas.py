"""What `--json` of every command, `--events`, statuses and run reports look like: JSON schemas, draft 2020-12.

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
RESULTS: dict[str, Schema] = {
    "retrieve": _result(
        prediction=TEXT, median_references=MAYBE_NUMBER, worst_gap=MAYBE_NUMBER, stalled=MAYBE_COUNT,
        mean_passes=MAYBE_NUMBER,
    ),
    "embed": _result(embeddings=TEXT),
}  # fmt: skip
"""By command that works on slides."""


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

FLAG: Schema = {"type": "boolean"}
NUMBER: Schema = {"type": "number"}
MAYBE_TEXT: Schema = {"type": ["string", "null"]}
ANY_NUMBER: Schema = {"type": ["number", "null"]}
TEXTS: Schema = {"type": "array", "items": TEXT}
PLANNED: Schema = {"const": True}
"""`dry_run`"""
SHA256: Schema = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
MAYBE_SHA256: Schema = {"oneOf": [SHA256, {"type": "null"}]}
BY_GENE: Schema = {"type": ["object", "null"], "additionalProperties": ANY_NUMBER}
HERE: Schema = {"enum": ["yes", "no", "part", "none needed", "unknown"]}
OPEN: Schema = {"type": "object"}
COUNTS: Schema = {"type": "object", "additionalProperties": COUNT}
SIDE: Schema = {"type": "integer", "minimum": 1}


def listed(items: Schema) -> Schema:
    """An array of these."""
    return {"type": "array", "items": items}


def maybe(schema: Schema) -> Schema:
    """This, or null."""
    return {"oneOf": [schema, {"type": "null"}]}


def _open(**fields: Schema) -> Schema:
    """An object that has these fields, and may have others."""
    return {"type": "object", "properties": fields, "required": sorted(fields)}


def _either(*schemas: Schema) -> Schema:
    return {"$schema": DRAFT, "oneOf": list(schemas)}


_BACKBONE = closed(
    name=TEXT, package=TEXT, broken=MAYBE_TEXT, family=FLAG, weights_here=HERE,
    sheet=maybe(
        closed(
            name=TEXT, kind={"enum": ["encoder", "model"]}, dim=MAYBE_COUNT, tile_px=SIDE, licence=TEXT, feature=TEXT,
            source=TEXT, fov_um=MAYBE_NUMBER, precision={"enum": ["float32", "bfloat16", "float16"]}, needs=TEXTS,
            scale=TEXT, deterministic=FLAG, options={"type": "object", "additionalProperties": TEXT}, unchecked=TEXT,
        )
    ),
    weights=listed(
        closed(
            part=TEXT, repo=TEXT, filenames=TEXTS, revision=MAYBE_TEXT, gated=FLAG, package=TEXT, where=TEXT,
            path=MAYBE_TEXT,
        )
    ),
)  # fmt: skip
_ERROR: Schema = {"error": {"type": "string", "minLength": 1}, "hint": TEXT}
_SCORE = closed(
    method=TEXT, panel={"enum": ["core", "global"]}, metric=TEXT, value=ANY_NUMBER, n_spots=COUNT, n_genes=COUNT,
    n_undefined=COUNT, note=TEXT,
)  # fmt: skip
_LEAK = closed(
    kind={"enum": ["section", "patient", "same-patient", "panel"]}, text=TEXT, sections=TEXTS, patients=TEXTS,
    share=ANY_NUMBER,
)  # fmt: skip
_RECORD = _open(
    protocol=TEXT, preset=TEXT, scale=TEXT, folds=listed(OPEN), summary=OPEN,
    behind=listed(closed(method=TEXT, metric=TEXT, by={"type": "number", "exclusiveMinimum": 0})),
)  # fmt: skip
_SECTION = closed(
    name=TEXT, patient=MAYBE_TEXT, technology=TEXT, species=MAYBE_TEXT, counts=TEXT, image=MAYBE_TEXT,
    n_spots=MAYBE_COUNT, n_genes=MAYBE_COUNT, mpp=MAYBE_NUMBER, mpp_source=TEXT, mpp_others=listed(listed({})),
    pitch_um=MAYBE_NUMBER, spot_um=MAYBE_NUMBER, fov_um=MAYBE_NUMBER, darkness=ANY_NUMBER, dropped_genes=MAYBE_COUNT,
    problems=TEXTS, notes=TEXTS,
)  # fmt: skip
_INSPECTED = closed(
    slide=TEXT, reader=TEXT, vendor=TEXT, width=SIDE, height=SIDE,
    levels=listed(
        closed(width=SIDE, height=SIDE, downsample={"type": "number", "minimum": 1}, tile=maybe(listed(SIDE)))
    ),
    mpp={"type": "number", "exclusiveMinimum": 0}, mpp_source=TEXT,
    mpp_others=listed(closed(source=TEXT, mpp=NUMBER)),
    tissue_share={"type": "number", "minimum": 0, "maximum": 1}, spots=MAYBE_COUNT,
    grid=maybe(closed(fov_um=NUMBER, pitch_um=NUMBER, tile_px=SIDE, beyond_edge=COUNT)),
    forecast=maybe(
        closed(
            seconds=NUMBER, seconds_by_stage=SECONDS, memory_bytes=COUNT, disk_bytes=COUNTS, extrapolated_from=COUNTS,
            not_counted=TEXTS,
        )
    ),
    missing=TEXTS, notes=TEXTS,
)  # fmt: skip
_EXPLAINED = closed(
    prediction=TEXT, picture=TEXT, slide=TEXT, spot=TEXT, unit=TEXT, genes=TEXTS, in_prediction=OPEN, present=OPEN,
    predicted=BY_GENE, sum_of_terms=BY_GENE, measured=BY_GENE,
    references=listed(
        closed(name=TEXT, patient=MAYBE_TEXT, weight=NUMBER, share=NUMBER, measured=BY_GENE, adds=BY_GENE)
    ),
    others=closed(number=COUNT, weight=NUMBER, share=NUMBER, adds=BY_GENE),
    base={"type": "object", "additionalProperties": BY_GENE},
    sweep=maybe(listed(closed(omega=NUMBER, references=COUNT, kept=ANY_NUMBER, predicted=BY_GENE))), notes=TEXTS,
)  # fmt: skip
_STATES = ["running", "interrupted", "done", "empty", "failed", "stopped", "gone"]
_STANDING = closed(
    status=TEXT, state={"enum": _STATES}, slide=TEXT, command={"enum": ["retrieve", "embed"]}, output=TEXT,
    spots=MAYBE_COUNT, bad_tiles=COUNT, attempts=COUNT, worker=TEXT, began=TIME,
    ended={"oneOf": [TIME, {"const": ""}]}, seconds=SECONDS, peak_memory=COUNT, reason=TEXT, hint=TEXT, warnings=TEXTS,
)  # fmt: skip
_VERIFIED = closed(
    path=TEXT, kind={"enum": ["file", "folder", "bank"]}, state={"enum": ["whole", "damaged", "changed", "unsealed"]},
    sha256=MAYBE_SHA256, reason=TEXT,
)  # fmt: skip
DOCUMENTS: dict[str, Schema] = {
    **RESULTS,
    "backbones list": {"$schema": DRAFT, **listed(_BACKBONE)},
    "backbones info": {"$schema": DRAFT, **_BACKBONE},
    "backbones check": _either(
        closed(name=TEXT, weights_here={"enum": [*HERE["enum"], "given"]}, dry_run=PLANNED),
        closed(
            name=TEXT, device=TEXT, dim=SIDE, tile_px=SIDE, weights_sha256=TEXT, kind={"enum": ["encoder", "model"]},
            genes=MAYBE_COUNT, scale=TEXT, load_s=NUMBER, tile_s=NUMBER, repeats=FLAG, deterministic=FLAG,
            batch_difference=NUMBER, batches=FLAG, wrong=TEXTS,
        ),
    ),
    "backbones fetch": {
        "$schema": DRAFT,
        **listed({
            "oneOf": [
                closed(backbone=TEXT, files=TEXTS, dry_run=PLANNED),
                closed(
                    backbone=TEXT, files=listed(closed(part=TEXT, path=MAYBE_TEXT, sha256=MAYBE_SHA256, note=TEXT))
                ),
                closed(backbone=TEXT, **_ERROR),
            ]
        }),
    },
    "bank info": {
        "$schema": DRAFT,
        **_open(
            format=TEXT, format_version=SIDE, train=TEXTS, genes_file=OPEN, geometry=OPEN, sections=listed(OPEN),
            skipped=listed({}), dropped_genes=OPEN, backbones=OPEN, genes=TEXTS,
        ),
    },
    "bank verify": {
        "$schema": DRAFT, **closed(bank=TEXT, intact=FLAG, wrong=TEXTS, manifest_has_digest=FLAG),
    },
    "cohort info": {
        "$schema": DRAFT,
        **closed(
            root=TEXT, format=TEXT, sections=listed(_SECTION), skipped=listed(TEXTS), warnings=TEXTS,
            n_shared_genes=MAYBE_COUNT, patients=TEXTS,
        ),
    },
    "doctor": _either(
        closed(checks=TEXTS, dry_run=PLANNED),
        closed(
            findings=listed(
                closed(check=TEXT, state={"enum": ["ok", "note", "problem"]}, text=TEXT, remedy=TEXT)
            ),
            problems=COUNT,
        ),
    ),
    "evaluate": _either(
        closed(prediction=TEXT, truth=TEXT, dry_run=PLANNED),
        closed(
            prediction=TEXT, truth=TEXT, about=OPEN, scores=listed(_SCORE), claims=maybe(OPEN), leaks=listed(_LEAK),
            codebase=maybe(_open(codebase=TEXT, panel=TEXT, pcc=OPEN, n_genes=COUNT, n_spots=COUNT, notes=TEXTS)),
        ),
        closed(protocols=listed(closed(protocol=TEXT, preset=TEXT, folds=listed({}))), dry_run=PLANNED),
        closed(records=listed(_RECORD)),
    ),
    "explain": _either(closed(prediction=TEXT, picture=TEXT, genes=TEXTS, dry_run=PLANNED), _EXPLAINED),
    "inspect": {
        "$schema": DRAFT,
        **closed(
            slides=listed({"oneOf": [_INSPECTED, closed(slide=TEXT, **_ERROR)]}), backbone=TEXT, bank=MAYBE_TEXT,
            machine=closed(device=TEXT, threads=SIDE),
        ),
    },
    "status": {
        "$schema": DRAFT,
        **closed(
            folder=TEXT, counts=COUNTS,
            slides=listed({"oneOf": [closed(status=TEXT, state={"const": "unreadable"}), _STANDING]}),
        ),
    },
    "tune": _either(
        closed(bank=TEXT, backbone=TEXT, tuning={"const": 0}, rule=TEXT, key=TEXT, tried={"const": []}),
        _open(
            bank=TEXT, backbone=TEXT, tuning=SIDE, key=TEXT, settings=OPEN, score=NUMBER, rule=TEXT,
            folds=listed(TEXTS), tried=listed(OPEN), scores={}, sections={}, n_out_of_fold=COUNT, n_predictable=COUNT,
        ),
    ),
    "verify": _either(
        closed(would_verify=TEXTS, dry_run=PLANNED),
        closed(results=listed(_VERIFIED), whole=COUNT, damaged=COUNT, changed=COUNT, unsealed=COUNT),
    ),
}  # fmt: skip
"""What `--json` says on stdout, by command."""
