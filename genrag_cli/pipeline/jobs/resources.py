"""What one job asks a scheduler for.

Knows SLURM's way of writing a time, and what cannot be asked for. It does not know what a cluster has.
"""

import re
from dataclasses import dataclass

from genrag_cli.errors import UsageError

_TIME = re.compile(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)")


@dataclass(frozen=True)
class Resources:
    """Of one job.

    Raises:
        UsageError: for a time that is not [DAYS-]HH:MM:SS and above 0, and for several GPUs.
    """

    time: str
    """[DAYS-]HH:MM:SS."""
    cpus: int
    mem_gb: int
    gpus: int

    def __post_init__(self) -> None:
        if self.gpus > 1:
            raise UsageError(
                f"--gpus {self.gpus} asked; one process works on one GPU",
                "Leave it at 1 and start more jobs at once (--tasks, --jobs); several of one node is fine.",
            )
        if not _TIME.fullmatch(self.time) or self.seconds == 0:
            raise UsageError(f"--time {self.time} asked; it must be a time above 0", "Write HH:MM:SS or D-HH:MM:SS.")

    @property
    def seconds(self) -> int:
        """`time` in seconds."""
        match = _TIME.fullmatch(self.time)
        assert match is not None
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds

    @property
    def minutes(self) -> int:
        """`time` in whole minutes, rounded up."""
        return -(-self.seconds // 60)
