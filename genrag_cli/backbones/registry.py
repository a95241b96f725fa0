"""Backbones by name, found through the entry-point group `generag.backbones` and loaded on first use.

Knows where names come from and what a loaded object must look like; knows no backbone. Looking up names imports
nothing, so a broken plug-in is felt only by whoever asks for it.
"""

from importlib.metadata import EntryPoint, entry_points

from genrag_cli.backbones.base import Backbone
from genrag_cli.errors import BackboneError, GeneragError, nearest
from genrag_cli.types import BackboneCard

GROUP = "generag.backbones"


def names() -> tuple[str, ...]:
    """The names of all installed backbones, sorted; none of them is imported."""
    return tuple(sorted(entry_points(group=GROUP).names))


def expect_known(name: str) -> None:
    """Raises BackboneError for a name that no installed package claims, or that two do; imports nothing."""
    _find(name)


def load_backbone(name: str, device: str = "cpu") -> Backbone:
    """Loads one backbone.

    Args:
        name: as in `names()`.
        device: 'cpu', 'cuda', 'cuda:1', ...

    Raises:
        BackboneError: for an unknown name (with the nearest ones), a name that two packages claim, a plug-in that
            fails to import or to start, or an object that is no backbone.
    """
    entry = _find(name)
    home = f"backbone {name} ({entry.value}, {_package(entry)})"
    remedy = f"Reinstall or remove {_package(entry)}; other backbones are not touched by this."
    try:
        loaded = entry.load()(device=device)
    except GeneragError:
        raise
    except Exception as error:  # a plug-in may fail in any way, and must not take the tool down with it
        raise BackboneError(f"{home} cannot be loaded: {type(error).__name__}: {error}", remedy) from error
    return _expect_backbone(loaded, name, home, remedy)


def _find(name: str) -> EntryPoint:
    # The same line seen twice (an editable install beside a built one) is one claim; two different lines are two.
    found = {entry.value: entry for entry in entry_points(group=GROUP, name=name)}
    if not found:
        raise BackboneError(f"unknown backbone {name!r}", nearest(name, names()))
    if len(found) > 1:
        claims = " and ".join(f"{value} ({_package(entry)})" for value, entry in sorted(found.items()))
        raise BackboneError(f"backbone {name!r} is claimed by {claims}", "Remove one of the two packages.")
    return next(iter(found.values()))


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
