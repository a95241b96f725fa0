"""Every expected failure, with what to do about it and the exit code a shell sees.

| exit code | meaning | raised as |
|---|---|---|
| 0 | done | - |
| 1 | failed | `GeneragError` and the subclasses below that name no other code |
| 2 | usage: an option or argument that cannot be right | `UsageError` |
| 3 | some inputs failed, the others are done | `SomeInputsFailed` |
| 75 | stopped on request; the same command goes on from there | `Stopped`, Ctrl-C |

This module does not know how a message is shown; `genrag_cli.cli` prints `message` and `hint`.
"""

import difflib
from collections.abc import Iterable


class GeneragError(Exception):
    """An expected failure.

    Args:
        message: what was asked and what was found, with path and value.
        hint: what to do about it; empty where nothing can be done.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class UsageError(GeneragError):
    """An option or argument that cannot be right."""

    exit_code = 2


class SlideError(GeneragError):
    """A slide that cannot be opened, has no usable pixel size, or holds nothing to predict."""


class CohortError(GeneragError):
    """Measured sections that cannot be read or do not fit together."""


class BankError(GeneragError):
    """A bank that is missing, unfinished, damaged, locked, or lacks what was asked of it."""


class BackboneError(GeneragError):
    """A backbone that is unknown, cannot be loaded, or does not fit the bank."""


class FeaturesError(GeneragError):
    """Embeddings or predictions made elsewhere that cannot be read or do not fit the spots or the bank."""


class SolverError(GeneragError):
    """A retrieval problem that is malformed or cannot be solved as asked."""


class OutputError(GeneragError):
    """An output that cannot be written or read back."""


class SomeInputsFailed(GeneragError):
    """Several inputs were given and some of them failed; the others are done."""

    exit_code = 3


class Stopped(GeneragError):
    """Stopped on request; the same command goes on from there."""

    exit_code = 75


def nearest(name: str, known: Iterable[str], n: int = 3) -> str:
    """Returns a hint that names what `name` may have meant, or everything known when nothing is close."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=n, cutoff=0.6)
    if close:
        return f"Did you mean {' or '.join(close)}?"
    shown = ", ".join(names[:20]) + (f", ... ({len(names)} in all)" if len(names) > 20 else "")
    return f"Known: {shown}" if names else "None are known."
