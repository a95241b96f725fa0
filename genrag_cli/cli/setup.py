"""From parsed options to what a pipeline takes: device, threads, listener, loaded backbone."""

import os
from typing import TYPE_CHECKING

from genrag_cli.cli.console import ConsoleListener

if TYPE_CHECKING:
    from genrag_cli.pipeline.options import RunOptions


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
    from genrag_cli.pipeline.options import RunOptions, allotted_cpus

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
