"""Tuned settings of a bank's version: an immutable file each, of which the newest is used.

They belong to a version but are no part of it: they change neither its fingerprint nor what earlier predictions point
to. This module does not know what settings mean.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.errors import BankError
from genrag_cli.stores.bank import Bank, find_damage
from genrag_cli.stores.bank_writer import BankWriter
from genrag_cli.stores.layout import tuning_file
from genrag_cli.stores.zipped import read_about, read_arrays, write_arrays


def add_tuning(
    writer: BankWriter, backbone: str, version: int, arrays: dict[str, NDArray[Any]], about: dict[str, Any]
) -> int:
    """Adds settings to a version; earlier ones stay for the predictions that were made with them.

    A newest one with the same `key` whose file was lost or cut short is written anew under its number.

    Args:
        writer: of the bank.
        backbone: by name.
        version: its number.
        arrays: of `layout.TUNING`.
        about: settings, folds and curves; `key` says what they were found on.

    Returns:
        their number, from 1.
    """
    entry = writer.manifest["backbones"][backbone]["versions"][version - 1]
    there = entry.get("tunings", [])
    if there and there[-1]["key"] == about["key"] and find_damage(writer.folder, there[-1]):
        there.pop()
    number = len(there) + 1
    file = tuning_file(backbone, version, number)
    write_arrays(writer.folder / file, arrays, about)
    writer.enter_tuning(backbone, version, file, about["key"])
    return number


def list_tunings(bank: Bank) -> list[dict[str, Any]]:
    """Entries of the manifest of an opened version's tunings, oldest first."""
    found: list[dict[str, Any]] = bank.manifest["backbones"][bank.backbone]["versions"][bank.number - 1].get(
        "tunings", []
    )
    return found


def read_tuning(bank: Bank, number: int | None = None) -> tuple[int, dict[str, NDArray[Any]], dict[str, Any]] | None:
    """Settings of an opened version: the newest, or those of a number.

    Returns:
        number, arrays and attributes; None where the version was never tuned.

    Raises:
        BankError: where the number is not there, or its file is gone, cut short or changed.
    """
    entries = list_tunings(bank)
    if not entries and number is None:
        return None
    if number is not None and not 1 <= number <= len(entries):
        raise BankError(
            f"version {bank.number} of {bank.backbone} in {bank.folder} has {len(entries)} tunings, {number} was asked",
            "Give the bank that the prediction was made with (--bank).",
        )
    number = number or len(entries)
    entry = entries[number - 1]
    if wrong := find_damage(bank.folder, entry):
        raise BankError(
            f"the bank {bank.folder} is damaged: {wrong[0]}",
            f"Tune again: generag tune {bank.folder} --backbone {bank.backbone} --overwrite",
        )
    path = bank.folder / entry["file"]
    return number, {k: np.asarray(v) for k, v in read_arrays(path).items()}, read_about(path)
