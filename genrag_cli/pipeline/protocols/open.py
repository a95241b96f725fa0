"""What a protocol runs over: a bank, or a cohort of which a bank is made first."""

from pathlib import Path

from genrag_cli.cohorts import open_cohort
from genrag_cli.pipeline.bank_options import BankOptions
from genrag_cli.pipeline.build_bank import build_bank
from genrag_cli.pipeline.loading import Loaded
from genrag_cli.pipeline.options import RunOptions
from genrag_cli.stores.bank import Bank
from genrag_cli.stores.layout import MANIFEST
from genrag_cli.types import Listener


def is_bank(path: Path) -> bool:
    """Whether a path is a bank."""
    return (path / MANIFEST).is_file()


def bank_of_cohort(
    cohort: Path, folder: Path, loaded: Loaded, patients: str | None, run: RunOptions, listener: Listener
) -> Bank:
    """A bank of all sections of a cohort, tested ones too: each fold then leaves its own out.

    Args:
        cohort: as for `build-bank`.
        folder: of the bank, taken up where it is there.
        loaded: the backbone.
        patients: as for `build-bank`.
        run: device, workers.
        listener: told what happens.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    build_bank([open_cohort(cohort, patients=patients)], folder, [loaded], BankOptions(), run, listener)
    return Bank.open(folder, loaded.backbone.card.name)
