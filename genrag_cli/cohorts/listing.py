"""What readers do alike when they list a folder: sort sections by what they lack, and read metadata in JSON."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genrag_cli.cohorts.base import Cohort, Section
from genrag_cli.errors import CohortError


@dataclass
class Listing:
    """Sections in the order in which they are found."""

    ready: list[Section] = field(default_factory=list)
    bare: list[Section] = field(default_factory=list)
    """Without an image."""
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def add(self, section: Section, lacking: str) -> None:
        """Takes a section in; `lacking` says why it has no image, and is empty where it has one."""
        if lacking:
            self.skipped.append((section.name, lacking))
            self.bare.append(section)
        else:
            self.ready.append(section)

    def skip(self, name: str, why: str | CohortError) -> None:
        """Leaves something out, with the reason or the error and its remedy."""
        reason = why if isinstance(why, str) else " ".join(filter(None, (why.message, why.hint)))
        self.skipped.append((name, reason))

    def cohort(self, root: Path, format: str, warnings: Iterable[str] = (), panel: Path | None = None) -> Cohort:  # noqa: A002
        """What was found, as a cohort."""
        return Cohort(
            root, format, tuple(self.ready), tuple(self.skipped), tuple(warnings), tuple(self.bare), panel
        )  # fmt: skip


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CohortError: for a file that is missing, damaged, or holds something else.
    """
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CohortError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(stated, dict):
        raise CohortError(f"{path}: expected a JSON object, found {type(stated).__name__}")
    return stated
