"""A command line of generag that works on slides, taken apart.

Knows which words are slides and which are options. It does not know how words are parsed; the command line does that.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path

from genrag_cli.errors import UsageError

PER_SLIDE = ("embed", "retrieve")
"""Commands that make one file for every slide."""
_SETTLED = {"--shard": "each job is told its own share", "--dry-run": "no job would do anything"}


@dataclass(frozen=True)
class Line:
    """What was written after `generag`.

    Raises:
        UsageError: for words that do not fit in one line of a file, and for options that jobs settle by themselves.
    """

    words: tuple[str, ...]
    """All of it, as it was written."""
    options: tuple[str, ...]
    """What is neither the command nor slides, with the variables that stand for options written out."""
    slides: tuple[str, ...]
    """Slides, folders, globs, or a manifest."""
    out: Path
    backbone: str
    bank: Path

    def __post_init__(self) -> None:
        for word in self.words:
            if not word.isprintable():
                raise UsageError(
                    f"{word!r} holds a character that cannot stand in a line", "Rename the file or folder."
                )
        for flag, why in _SETTLED.items():
            if self.has(flag):
                raise UsageError(f"{flag} within a command line for many jobs: {why}", "Leave it out.")

    @property
    def verb(self) -> str:
        """'embed' or 'retrieve'."""
        return self.words[0]

    def has(self, flag: str) -> bool:
        """Whether an option was given."""
        return flag in self.options

    def __str__(self) -> str:
        return shlex.join(("generag", *self.words))
