"""From parsed options to what a pipeline takes: device, threads, listener, loaded backbone."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genrag_cli.cli.console import ConsoleListener

if TYPE_CHECKING:
    from genrag_cli.pipeline.loading import Loaded
    from genrag_cli.pipeline.options import RunOptions, SlideOptions
    from genrag_cli.stores.bank import Bank


def make_run(
    listener: ConsoleListener,
    *,
    device: str | None = None,
    workers: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    dry_run: bool = False,
    bank_memory_gb: float | None = None,
) -> "RunOptions":
    """Settles device and threads, and says which.

    Raises:
        UsageError: for a device that this machine does not have.
    """
    import torch

    from genrag_cli.errors import UsageError
    from genrag_cli.pipeline.cpus import allotted_cpus
    from genrag_cli.pipeline.options import RunOptions

    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"device {chosen} cannot be used: {str(error).splitlines()[0]}", "Use --device cpu, or leave --device out."
        ) from error
    # Ranks on one machine share its CPUs.
    threads = workers or max(1, allotted_cpus() // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    torch.set_num_threads(threads)
    listener.say(f"device {chosen}, {threads} CPU threads")
    return RunOptions(
        device=chosen, workers=threads, seed=seed, overwrite=overwrite, dry_run=dry_run, bank_memory_gb=bank_memory_gb
    )


def load_all(
    names: Sequence[str],
    device: str,
    *,
    weights: Sequence[str] | None,
    options: Sequence[str] | None,
    unsafe_pickle: bool,
    views: int | None,
    manifest: Mapping[str, Any] | None,
) -> "list[Loaded]":
    """Loads backbones with what was given, and for the rest with what the bank's were loaded with.

    Args:
        names: of the backbones.
        device: 'cpu', 'cuda', ...
        weights: `--weights`.
        options: `--backbone-option`.
        unsafe_pickle: `--unsafe-pickle`.
        views: `--views`; None: the bank's.
        manifest: of the bank; None where there is none.
    """
    from genrag_cli.backbones.registry import load_backbone
    from genrag_cli.backbones.views import with_views
    from genrag_cli.errors import GeneragError
    from genrag_cli.pipeline.loading import Loaded, missing_files, parse_loading, recall

    given = parse_loading(names, weights or (), options or (), unsafe_pickle)
    known = (manifest or {}).get("backbones", {})
    out = []
    for name in names:
        there = known.get(name, {})
        recorded = there.get("loading") or {}
        loading = recall(recorded, given[name])
        n_views = views or there.get("card", {}).get("views", 1)
        try:
            backbone = load_backbone(name, device, loading)
        except GeneragError as error:
            gone = [] if given[name].weights else missing_files(recorded)
            if not gone:
                raise
            said = f"The bank's was loaded with {', '.join(gone)}, which is no longer there."
            raise type(error)(error.message, f"{said}\n{error.hint}".strip()) from error
        out.append(Loaded(with_views(backbone, n_views), loading))
    return out


def open_bank(folder: Path, backbone: str) -> "Bank":
    """Opens a bank with a backbone.

    Raises:
        BackboneError: for a name that neither the bank nor an installed package knows.
        BankError: as `Bank.open`; where the backbone is to be added and its weights are not here, with how to get them.
    """
    from genrag_cli.backbones.registry import expect_known, read_sheet
    from genrag_cli.backbones.weights import find_file
    from genrag_cli.errors import BankError, GeneragError
    from genrag_cli.stores.bank import Bank, read_manifest

    if backbone in read_manifest(folder)["backbones"]:
        return Bank.open(folder, backbone)
    expect_known(backbone)
    try:
        return Bank.open(folder, backbone)
    except BankError as error:
        sheet = None
        with contextlib.suppress(GeneragError):  # a broken plug-in is said when it is loaded
            sheet = read_sheet(backbone)
        if sheet is None or all(find_file(file) for file in sheet.weights):
            raise
        hint = f"Its weights are not on this machine: add --weights FILE, or first generag backbones fetch {backbone}"
        raise BankError(error.message, f"{error.hint}\n{hint}") from error


def load_for_bank(
    bank: "Bank",
    device: str,
    *,
    weights: Sequence[str] | None,
    options: Sequence[str] | None,
    unsafe_pickle: bool,
    views: int | None,
    slide_options: "SlideOptions",
) -> "Loaded":
    """Loads the backbone that a bank was opened with, and refuses one that is not the bank's.

    Raises:
        BackboneError: as `fit.check_fit`.
    """
    from genrag_cli.pipeline.fit import check_fit, expect_pixels, expect_views

    expect_pixels(bank)
    expect_views(views, bank)
    (loaded,) = load_all(
        [bank.backbone], device, weights=weights, options=options, unsafe_pickle=unsafe_pickle, views=views,
        manifest=bank.manifest,
    )  # fmt: skip
    check_fit(bank, loaded.backbone, slide_options)
    return loaded


def expect_one_voice(*, as_json: bool, events: bool) -> None:
    """Refuses `--json` beside `--events`: both are what stdout holds.

    Raises:
        UsageError: where both are given.
    """
    from genrag_cli.errors import UsageError

    if as_json and events:
        raise UsageError("--json and --events both say what stdout holds", "Give one of them.")


def expect_alone(
    backbones: Sequence[str] | None,
    weights: Sequence[str] | None,
    options: Sequence[str] | None,
    *,
    unsafe_pickle: bool,
    views: int | None,
) -> None:
    """Refuses options that load a backbone beside `--features`, which needs none but its name.

    Raises:
        UsageError: naming them.
    """
    from genrag_cli.errors import UsageError

    given = {
        "--weights": weights, "--backbone-option": options, "--unsafe-pickle": unsafe_pickle, "--views": views,
    }  # fmt: skip
    if beside := [flag for flag, value in given.items() if value]:
        raise UsageError(f"{' and '.join(beside)} beside --features: no backbone is loaded", "Leave it out.")
    if len(backbones or ()) != 1:
        raise UsageError(
            f"--features given with {len(backbones or ())} backbones", "Name what made them: --backbone NAME, once."
        )
