"""What a protocol runs over: a bank, or a cohort of which a bank is made first."""

from collections.abc import Sequence
from pathlib import Path

from genrag_cli.cohorts import open_cohort
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
    folder.parent.mkdir(parents=True, exist_ok=True)
    opened = open_cohort(cohort, patients=patients)
    for protocol in protocols:  # before anything is embedded
        plan_folds(protocol, [{"name": s.name, "patient": s.patient} for s in opened.sections])
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
