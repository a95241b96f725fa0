"""Names of sections and patients: which can be used, and which are too alike to be told apart.

A section's name becomes a file name in a bank, and a bank may be carried to any computer: some tell no letter case
apart, some keep names for devices. Nothing here renames anything.
"""

import re
import unicodedata
from collections.abc import Iterable

MAX_BYTES = 150
"""File systems take 255 bytes for a file name; a bank's files have endings, and longer names while they are written."""
_UNSAFE = '/\\:*?"<>|'
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
REMEDY = "Rename it in a table of the sections (generag cohort scan writes one), column section."


def why_unusable(section: str) -> str:
    """Why a section cannot go by this name in a bank; empty where it can."""
    if not section.strip():
        return "it is empty"
    if bad := next((c for c in section if c in _UNSAFE or unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")), None):
        return f"it holds {bad!r}, which file names cannot have everywhere"
    if section[0] == "." or section != section.strip():
        return "it begins with a dot or a blank, or ends with a blank"
    if _DEVICES.fullmatch(section):
        return "Windows keeps this name for a device"
    if (size := len(section.encode())) > MAX_BYTES:
        return f"it is {size} bytes long, {MAX_BYTES} are possible"
    return ""


def find_alike(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of different names that differ in letter case, blanks, or how accents are written, and in nothing else."""
    first: dict[str, str] = {}
    pairs = []
    for name in dict.fromkeys(names):
        plain = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        if (other := first.setdefault(plain, name)) != name:
            pairs.append((other, name))
    return pairs


def warn_of_patients(patients: Iterable[str | None]) -> list[str]:
    """A line for each two patients that may be one: whoever holds one of them out should know."""
    return [
        f"patients {one!r} and {other!r} are written almost alike and count as two: name them alike if they are one"
        for one, other in find_alike(p for p in patients if p)
    ]
