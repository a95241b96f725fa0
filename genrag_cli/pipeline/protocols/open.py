"""What a protocol runs over: a bank, or a cohort of which a bank is made first."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genrag_cli.cohorts import Cohort, open_cohort
from genrag_cli.errors import UsageError
from genrag_cli.pipeline.bank_options import BankOptions
from genrag_cli.pipeline.build_bank import build_bank
from genrag_cli.pipeline.loading import Loaded
from genrag_cli.pipeline.options import RunOptions
from genrag_cli.pipeline.protocols.plan import Protocol, plan_folds
from genrag_cli.stores.bank import Bank, read_manifest
from genrag_cli.stores.layout import MANIFEST
from genrag_cli.types import Listener


def is_bank(path: Path) -> bool:
    """Whether a path is a bank."""
    return (path / MANIFEST).is_file()


def bank_of_cohort(
    cohort: Path, folder: Path, loaded: Loaded, patients: str | None, run: RunOptions, listener: Listener, *,
    mine: bool, protocols: Sequence[Protocol],
) -> Bank:  # fmt: skip
    """A bank of all sections of a cohort, tested ones too: each fold then leaves its own out.

    Args:
        cohort: as for `build-bank`.
        folder: of the bank, taken up where it is there.
        loaded: the backbone.
        patients: as for `build-bank`.
        run: device, workers.
        listener: told what happens.
        protocols: that are to run over it.
        mine: whether the folder is this command's own, where an unfinished bank may stand.

    Raises:
        UsageError: for a bank of other sections, or a protocol that the sections do not allow.
    """
    opened = open_cohort(cohort, patients=patients)
    for protocol in protocols:  # before anything is embedded
        plan_folds(protocol, _entries(opened))
    folder.parent.mkdir(parents=True, exist_ok=True)
    if is_bank(folder):
        there = {s["name"] for s in read_manifest(folder)["sections"]}
        ours = {s.name for s in opened.sections}
        if there - ours or (ours - there and not mine):
            raise UsageError(
                f"--bank {folder} holds other sections than {cohort}, and test sections must not get into it",
                "Leave --bank out, or evaluate that bank itself: generag evaluate BANK --protocol ...",
            )
    build_bank([opened], folder, [loaded], BankOptions(), run, listener)
    return Bank.open(folder, loaded.backbone.card.name)


def plan_protocols(
    what: Path, backbone: str, folder: Path, patients: str | None, out: Path, protocols: Sequence[Protocol],
    presets: Sequence[str], listener: Listener,
) -> list[dict[str, Any]]:  # fmt: skip
    """Says which folds would run over a bank or a cohort, and what would be written; writes nothing.

    Args:
        what: a bank, or a cohort.
        backbone: by name.
        folder: where a cohort's bank would be made.
        patients: as for `build-bank`.
        out: folder for records.
        protocols: that would run.
        presets: that each would run with.
        listener: told.

    Returns:
        `protocol`, `preset` and names of `folds`, one for each pair.

    Raises:
        GeneragError: for what cannot be opened or planned.
    """
    if is_bank(what):
        sections = Bank.open(what, backbone).sections
    else:
        sections = _entries(open_cohort(what, patients=patients))
        done = "take up" if is_bank(folder) else "build"
        listener.say(f"would {done} {folder} from {len(sections)} sections with {backbone}")
    planned = []
    for preset in presets:
        for protocol in protocols:
            folds = [held.name for held in plan_folds(protocol, sections)]
            planned.append({"protocol": str(protocol), "preset": preset, "folds": folds})
            listener.say(f"would run {protocol}, preset {preset}, in {len(folds)} folds: {', '.join(folds)}")
    listener.say(f"would write records, scores.csv and figures to {out}")
    return planned


def _entries(cohort: Cohort) -> list[dict[str, Any]]:
    """Sections of a cohort as `plan_folds` takes them."""
    return [{"name": section.name, "patient": section.patient} for section in cohort.sections]
