"""Which layouts are known: those of this package, and those that others add.

A layout is a module (or any object) with the four names of `base.CohortFormat`. A package adds one with

    [project.entry-points."generag.cohorts"]
    mylab = "mylab_generag.layout"

and tests it with `genrag_cli.testing.section_contract.SectionContract`. A broken plug-in stops nothing: it is named
where a folder fits no other layout, and refused where it is asked for.
"""

from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import cast

from genrag_cli.cohorts.base import CohortFormat, Reading, Section
from genrag_cli.errors import CohortError, UsageError, nearest

GROUP = "generag.cohorts"
BUILT_IN = {
    "legacy-st": "genrag_cli.cohorts.legacy_st",
    "hest": "genrag_cli.cohorts.hest",
    "space-ranger": "genrag_cli.cohorts.space_ranger",
    "xenium": "genrag_cli.cohorts.xenium",
    "cells-h5ad": "genrag_cli.cohorts.cells_h5ad",
    "spatialdata": "genrag_cli.cohorts.spatialdata_zarr",
    "hest-bench": "genrag_cli.cohorts.hest_bench",
    "h5ad": "genrag_cli.cohorts.h5ad_folder",
}
"""Name to module, in the order in which `describe_counts` asks."""
_NAMES = ("LAYOUT", "looks_like", "read_cohort", "read_one")


def known_formats() -> list[str]:
    """Every name that `--format` takes, those of plug-ins last."""
    return [*BUILT_IN, *(entry.name for entry in _plug_ins())]


def load_format(name: str) -> CohortFormat:
    """The layout called `name`.

    Raises:
        UsageError: for an unknown name.
        CohortError: for a plug-in that does not load or lacks a name.
    """
    if name in BUILT_IN:
        return cast(CohortFormat, import_module(BUILT_IN[name]))
    entry = next((e for e in _plug_ins() if e.name == name), None)
    if entry is None:
        raise UsageError(f"unknown cohort format {name!r}", nearest(name, known_formats()))
    try:
        loaded = entry.load()
    except Exception as error:  # a plug-in may fail in any way
        raise CohortError(f"cohort format {name!r} ({entry.value}) does not load: {error!r}") from error
    if missing := [n for n in _NAMES if not hasattr(loaded, n)]:
        raise CohortError(f"cohort format {name!r} ({entry.value}) lacks {', '.join(missing)}")
    return cast(CohortFormat, loaded)


def choose_format(root: Path, name: str | None) -> tuple[str, CohortFormat]:
    """The layout of a folder: the one asked for, or the one that fits.

    Raises:
        UsageError: for an unknown name.
        CohortError: where the asked layout is not there, none fits, or several do.
    """
    if name is not None:
        chosen = load_format(name)
        if not chosen.looks_like(root):
            raise CohortError(f"{root} is no {name} cohort: looked for {chosen.LAYOUT}")
        return name, chosen
    loaded, broken = _load_all()
    fitting = [(known, layout) for known, layout in loaded if layout.looks_like(root)]
    if len(fitting) > 1:
        names = ", ".join(known for known, _ in fitting)
        raise CohortError(f"{root} fits several layouts: {names}", "Say which with --format.")
    if not fitting:
        looked = "; ".join([f"{known}: {layout.LAYOUT}" for known, layout in loaded] + broken)
        raise CohortError(
            f"{root}: no cohort of a known layout",
            f"Looked for {looked}. For any other layout write a table: generag cohort scan {root}",
        )
    return fitting[0]


def describe_counts(counts: Path, reading: Reading, name: str | None = None) -> tuple[str, Section] | None:
    """The format and the section of one file or folder of counts, by the first layout that claims it.

    Args:
        counts: as `Section.counts` names it.
        reading: where the layout leaves a choice.
        name: ask this layout only.
    """
    for known, layout in [(name, load_format(name))] if name else _load_all()[0]:
        if (section := layout.read_one(counts, reading)) is not None:
            return known, section
    return None


def _load_all() -> tuple[list[tuple[str, CohortFormat]], list[str]]:
    loaded, broken = [], []
    for name in known_formats():
        try:
            loaded.append((name, load_format(name)))
        except CohortError as error:
            broken.append(f"{error.message} (left out)")
    return loaded, broken


def _plug_ins() -> Iterator[EntryPoint]:
    yield from (entry for entry in entry_points(group=GROUP) if entry.name not in BUILT_IN)
