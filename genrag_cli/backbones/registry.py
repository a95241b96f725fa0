"""Backbones by name, found through the entry-point group `generag.backbones` and loaded on first use.

Knows where names come from and what a loaded object must look like; knows no backbone. Looking up names imports
nothing, so a broken plug-in is felt only by whoever asks for it.
"""

import inspect
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from genrag_cli.backbones.base import Backbone, BackboneSheet, Loading
from genrag_cli.errors import BackboneError, GeneragError, UsageError, nearest
from genrag_cli.types import BackboneCard

GROUP = "generag.backbones"
FAMILY = "timm"
"""`timm:NAME` is any network of timm; the entry point `timm` is given what stands behind the colon."""
_FLAGS = {
    "weights": "--weights FILE", "parts": "--weights PART=FILE", "options": "--backbone-option",
    "unsafe_pickle": "--unsafe-pickle",
}  # fmt: skip


def names() -> tuple[str, ...]:
    """The names of all installed backbones, sorted; none of them is imported."""
    return tuple(sorted(entry_points(group=GROUP).names))


def expect_known(name: str) -> None:
    """Raises BackboneError for a name that no installed package claims, or that two do; imports nothing."""
    _find(name)


def load_backbone(name: str, device: str = "cpu", loading: Loading = Loading()) -> Backbone:  # noqa: B008 - frozen
    """Loads one backbone.

    Args:
        name: as in `names()`, or `timm:NAME`.
        device: 'cpu', 'cuda', 'cuda:1', ...
        loading: where its files are and what it is told.

    Raises:
        BackboneError: for an unknown name (with the nearest ones), a name that two packages claim, a plug-in that
            fails to import or to start, or an object that is no backbone.
        UsageError: for something that this backbone does not take.
    """
    entry, home, remedy = _place(name)
    factory = _import(entry, home, remedy)
    given = loading.given()
    _expect_taken(name, factory, given, loading)
    try:
        loaded = factory(device=device, **given)
    except GeneragError:
        raise
    except Exception as error:  # a plug-in may fail in any way, and must not take the tool down with it
        raise BackboneError(f"{home} cannot be loaded: {type(error).__name__}: {error}", remedy) from error
    return _expect_backbone(loaded, name, home, remedy)


def read_sheet(name: str) -> BackboneSheet | None:
    """What is known of a backbone before its weights are loaded; None where a plug-in says nothing.

    Raises:
        BackboneError: for an unknown name, or a plug-in that cannot be imported.
    """
    sheet = getattr(_import(*_place(name)), "sheet", None)
    return sheet if isinstance(sheet, BackboneSheet) else None


def takes(name: str, keyword: str) -> bool:
    """Whether a backbone can be told something (`weights`, `parts`, `options`, `unsafe_pickle`); True where unknown.

    Raises:
        BackboneError: as `read_sheet`.
    """
    taken = _parameters(_import(*_place(name)))
    return taken is None or keyword in taken


def package_of(name: str) -> str:
    """The package that claims a name, with its version."""
    return _package(_find(name))


def _place(name: str) -> tuple[EntryPoint, str, str]:
    entry = _find(name)
    home = f"backbone {name} ({entry.value}, {_package(entry)})"
    return entry, home, f"Reinstall or remove {_package(entry)}; other backbones are not touched by this."


def _import(entry: EntryPoint, home: str, remedy: str) -> Any:
    try:
        loaded = entry.load()
        family, _, member = entry.name.partition(":")
        return loaded(member) if member and family == FAMILY else loaded
    except GeneragError:
        raise
    except (Exception, SystemExit) as error:  # a plug-in that ends Python ends itself only
        raise BackboneError(f"{home} cannot be loaded: {type(error).__name__}: {error}", remedy) from error


def _expect_taken(name: str, factory: Any, given: dict[str, Any], loading: Loading) -> None:
    """Refuses what a factory does not take, before it is called."""
    if not given:
        return
    taken = _parameters(factory)
    if taken is None:
        return
    if refused := [_FLAGS[key] for key in given if key not in taken]:
        raise UsageError(f"backbone {name} takes no {' and no '.join(refused)}", f"See: generag backbones info {name}")
    sheet = getattr(factory, "sheet", None)
    if not isinstance(sheet, BackboneSheet):
        return
    known = [file.part for file in sheet.weights if file.part]
    for part in loading.parts:
        if part not in known:
            raise UsageError(f"--weights {part}=...: backbone {name} has no part {part}", nearest(part, known))
    for key in loading.options:
        if key not in sheet.options:
            raise UsageError(f"--backbone-option {key}: backbone {name} does not take it", nearest(key, sheet.options))


def _parameters(factory: Any) -> set[str] | None:
    """What a factory takes; None where only calling it will tell."""
    try:
        taken = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return None
    return None if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in taken.values()) else set(taken)


def _find(name: str) -> EntryPoint:
    # The same line seen twice (an editable install beside a built one) is one claim; two different lines are two.
    family, colon, member = name.partition(":")
    listed = family if colon and family == FAMILY and member else name
    found = {entry.value: entry for entry in entry_points(group=GROUP, name=listed)}
    if not found:
        raise BackboneError(f"unknown backbone {name!r}", nearest(name, names()))
    if len(found) > 1:
        claims = " and ".join(f"{value} ({_package(entry)})" for value, entry in sorted(found.items()))
        raise BackboneError(f"backbone {name!r} is claimed by {claims}", "Remove one of the two packages.")
    entry = next(iter(found.values()))
    if listed == name:
        return entry
    named = EntryPoint(name, entry.value, entry.group)
    vars(named).update(dist=entry.dist)  # as importlib.metadata itself does
    return named


def _package(entry: EntryPoint) -> str:
    dist = entry.dist
    return f"package {dist.name} {dist.version}" if dist else "no package"


def _expect_backbone(loaded: object, name: str, home: str, remedy: str) -> Backbone:
    card = getattr(loaded, "card", None)
    if not isinstance(card, BackboneCard):
        raise BackboneError(f"{home}: its card is {type(card).__name__}, not BackboneCard", remedy)
    if not isinstance(loaded, Backbone) or not callable(loaded.encode):
        raise BackboneError(f"{home}: {type(loaded).__name__} has no method encode", remedy)
    if card.dim < 1 or card.tile_px < 1:
        raise BackboneError(f"{home}: its card says dim {card.dim}, tile_px {card.tile_px}; both must be > 0", remedy)
    if card.name != name:
        # The card's name is the key of every stored embedding: under another one the bank would not be found again.
        raise BackboneError(f"{home}: its card says name {card.name!r}", remedy)
    return loaded
