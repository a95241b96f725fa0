"""From `--weights`, `--backbone-option` and `--unsafe-pickle` to what each asked backbone is loaded with.

Knows the grammar of the three flags and asks the sheets which parts there are. Loads nothing but plug-ins' modules, and
those only where a text could mean two things.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from genrag_cli.backbones.base import Backbone, Loading
from genrag_cli.backbones.registry import read_sheet, takes
from genrag_cli.errors import UsageError, nearest


@dataclass(frozen=True)
class Loaded:
    """A backbone for a bank, and what it was loaded with."""

    backbone: Backbone
    loading: Loading = field(default_factory=Loading)

    @property
    def name(self) -> str:
        """Under which the bank keeps its embeddings."""
        return self.backbone.card.name


@dataclass
class _Given:
    """What was said for one backbone so far."""

    weights: Path | None = None
    parts: dict[str, Path] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)


def parse_loading(
    names: Sequence[str], weights: Sequence[str], options: Sequence[str], unsafe_pickle: bool
) -> dict[str, Loading]:
    """Settles what belongs to which backbone.

    Args:
        names: the backbones asked for.
        weights: `PATH` is the only backbone's own file; `BACKBONE=PATH` that backbone's; `PART=PATH` a part of the only
            backbone; `BACKBONE:PART=PATH` a part of that one. A path may hold `=` where what stands before it is no
            backbone asked for and no part.
        options: `KEY=VALUE` for the only backbone, `BACKBONE:KEY=VALUE` for that one.
        unsafe_pickle: for the only backbone; of several, for those that know it.

    Returns:
        One `Loading` for every name.

    Raises:
        UsageError: for a text that names no backbone, part or file, that could mean several, or that repeats another.
        BackboneError: for a name that is unknown, where its parts had to be looked up.
    """
    given = {name: _Given() for name in names}
    for text in weights:
        _take_weights(text, given)
    for text in options:
        _take_option(text, given)
    unsafe = _trusted(list(given)) if unsafe_pickle else []
    return {name: Loading(g.weights, g.parts, g.options, name in unsafe) for name, g in given.items()}


def _take_weights(text: str, given: dict[str, _Given]) -> None:
    flag = f"--weights {text}"
    head, equals, rest = text.partition("=")
    backbone, part = _owner(head, given) if equals else (None, "")
    if backbone is None and equals and _is_part(head, text, given):
        backbone, part = _only(given, flag, f"--weights {next(iter(given))}:{text}"), head
    path = Path(rest if backbone else text).expanduser()
    if not path.exists():
        guess = "" if backbone is not None or not equals else _guess(head, given)
        raise UsageError(f"{flag}: {path} does not exist", guess or "Correct the path.")
    if backbone is None:
        backbone = _only(given, flag, f"--weights {next(iter(given))}={text}")
    one = given[backbone]
    if part in one.parts or (not part and one.weights is not None):
        raise UsageError(f"{flag}: {part or 'the file'} of {backbone} was given before", "Give it once.")
    if part:
        one.parts[part] = path
    else:
        one.weights = path


def _take_option(text: str, given: dict[str, _Given]) -> None:
    flag = f"--backbone-option {text}"
    head, equals, value = text.partition("=")
    backbone, key = _owner(head, given)
    if backbone is None or key == "":  # an option may be called like a backbone
        backbone, key = None, head
    if not equals or not key or key.endswith(":"):
        raise UsageError(f"{flag}: not a key and its value", "Write --backbone-option KEY=VALUE.")
    if backbone is None and ":" in head:
        named = head.rpartition(":")[0]
        raise UsageError(f"{flag}: backbone {named} is not among those asked for", nearest(named, given))
    if backbone is None:
        backbone = _only(given, flag, f"--backbone-option {next(iter(given))}:{text}")
    if key in given[backbone].options:
        raise UsageError(f"{flag}: {key} of {backbone} was given before", "Give it once.")
    given[backbone].options[key] = value


def _owner(head: str, given: dict[str, _Given]) -> tuple[str | None, str]:
    """The backbone that a text begins with and what follows its colon; longest first, as names may hold colons."""
    for name in sorted(given, key=len, reverse=True):
        if head == name:
            return name, ""
        if head.startswith(f"{name}:"):
            return name, head.removeprefix(f"{name}:")
    return None, ""


def _is_part(head: str, text: str, given: dict[str, _Given]) -> bool:
    """Whether a backbone asked for has a part called so; of one without a sheet any word is, unless a file is there."""
    parts = [_parts(name) for name in given]
    if any(head in known for known in parts if known is not None):
        return True
    return None in parts and head.isidentifier() and not Path(text).expanduser().exists()


def _parts(name: str) -> list[str] | None:
    sheet = read_sheet(name)
    return None if sheet is None else [file.part for file in sheet.weights if file.part]


def _guess(head: str, given: dict[str, _Given]) -> str:
    """What may have been meant by a name before `=` that is none, unless it looks like a path."""
    if "/" in head:
        return ""
    return f"{head} is no backbone asked for and no part of one. " + nearest(
        head, [*given, *(part for name in given for part in _parts(name) or ())]
    )


def _only(given: dict[str, _Given], flag: str, remedy: str) -> str:
    if len(given) != 1:
        raise UsageError(f"{flag}: for which of the backbones {', '.join(given)}?", f"Write, for one: {remedy}")
    return next(iter(given))


def _trusted(names: list[str]) -> list[str]:
    """Of several backbones those that know the flag; where none does, all, so that loading refuses it by name."""
    return [name for name in names if len(names) == 1 or takes(name, "unsafe_pickle")] or names


def record(loading: Loading) -> dict[str, Any]:
    """What a backbone was loaded with, for the bank's manifest; files by their full paths."""

    def whole(text: str) -> str:
        looks_like_a_file = "/" in text or Path(text).suffix != ""  # a word or number is none, whatever lies about
        return str(Path(text).resolve()) if looks_like_a_file and Path(text).exists() else text

    return {
        "weights": None if loading.weights is None else str(loading.weights.resolve()),
        "parts": {name: str(path.resolve()) for name, path in loading.parts.items()},
        "options": {key: whole(value) for key, value in loading.options.items()},
    }


def recall(recorded: Mapping[str, Any], given: Loading) -> Loading:
    """What was given now, and for the rest what the bank's backbone was loaded with, where its files are still there.

    That the weights are the same is not taken for granted: their digests are compared once they are loaded.
    """
    weights, parts = recorded.get("weights"), recorded.get("parts", {})
    there = {name: Path(path) for name, path in parts.items() if Path(path).exists()}
    return replace(
        given,
        weights=given.weights or (Path(weights) if weights and Path(weights).exists() else None),
        parts={**there, **given.parts},
        options={**recorded.get("options", {}), **given.options},
    )


def missing_files(recorded: Mapping[str, Any]) -> list[str]:
    """Weights and parts that a bank's backbone was loaded with and that are no longer where they were."""
    named = [recorded.get("weights"), *recorded.get("parts", {}).values()]
    return [str(path) for path in named if path and not Path(path).exists()]
