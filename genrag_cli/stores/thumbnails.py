"""Small JPEGs of the tiles of a bank's spots, one file a section: what a person looks at where slides are out of reach.

No prediction depends on them: they stand beside a bank's fingerprint and versions, in the entry of their section.
"""

import io
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.errors import BankError, OutputError
from genrag_cli.stores.atomic import digest_file, new_file
from genrag_cli.stores.bank import find_damage, is_whole
from genrag_cli.stores.bank_writer import BankWriter
from genrag_cli.stores.layout import THUMBNAILS, thumbnail_file
from genrag_cli.stores.zipped import opened, write_arrays
from genrag_cli.types import Strings

QUALITY = 85
Pixels = NDArray[np.uint8]


def has_thumbnails(writer: BankWriter, name: str, key: str) -> bool:
    """Whether a section's thumbnails are finished under this key."""
    entry = _entry(writer, name)
    return bool(entry and entry["key"] == key and is_whole(writer.folder, entry))


def add_thumbnails(writer: BankWriter, name: str, names: Strings, tiles: Iterable[Pixels], key: str) -> None:
    """Adds thumbnails of a section of a bank, in place of those that it had.

    Args:
        writer: of the bank.
        name: of a finished section.
        names: (n,) its spots.
        tiles: n pictures (s, s, 3) RGB, in the order of the spots.
        key: fingerprint of what they show; see `has_thumbnails`.

    Raises:
        OutputError: for another number of pictures than spots.
    """
    packed = [_pack(tile) for tile in tiles]
    if len(packed) != len(names):
        raise OutputError(f"section {name}: {len(packed)} thumbnails of {len(names)} spots")
    if _entry(writer, name):  # at no moment does an entry speak of another file
        writer.update_section(name, thumbnails=None)
    arrays: dict[str, NDArray[Any]] = {
        "jpeg": np.frombuffer(b"".join(packed), np.uint8),
        "offsets": np.cumsum([0, *map(len, packed)], dtype=np.int64),
    }
    write_arrays(writer.folder / thumbnail_file(name), arrays, {"spots": names.tolist(), "quality": QUALITY})
    _enter(writer, name, key)


def copy_thumbnails(writer: BankWriter, source: Path, entry: dict[str, Any]) -> bool:
    """Gives a section the thumbnails that it has in another bank.

    Args:
        writer: of the bank that has the section now.
        source: the other bank.
        entry: of the section there.

    Returns:
        False where they are missing or cut short there; True where there are none too.
    """
    theirs, name = entry.get("thumbnails"), entry["name"]
    if not theirs or has_thumbnails(writer, name, theirs["key"]):
        return True
    if not is_whole(source, theirs):
        return False
    with new_file(writer.folder / thumbnail_file(name)) as temporary:
        shutil.copyfile(source / theirs["file"], temporary)
    _enter(writer, name, theirs["key"])
    return True


def read_thumbnails(folder: Path, entry: dict[str, Any], names: Sequence[str] | Strings) -> list[Pixels]:
    """Pictures (s, s, 3) RGB of some spots of a section.

    Args:
        folder: the bank.
        entry: of the section, with `thumbnails`.
        names: of the spots.

    Raises:
        BankError: where the file is missing or damaged, or lacks a spot.
    """
    file = entry["thumbnails"]
    if wrong := find_damage(folder, file):
        raise BankError(f"the bank {folder} is damaged: {wrong[0]}", "Run build-bank --thumbnails again.")
    with opened(folder / file["file"]) as group:
        arrays = {element.path: group[element.path] for element in THUMBNAILS}
        place = {spot: i for i, spot in enumerate(group.attrs["spots"])}
        if missing := [name for name in map(str, names) if name not in place]:
            raise BankError(f"{folder / file['file']} has no picture of spot {missing[0]}")
        ends = arrays["offsets"][...]
        rows = [place[str(name)] for name in names]
        return [_unpack(arrays["jpeg"][ends[row] : ends[row + 1]], folder / file["file"]) for row in rows]


def _entry(writer: BankWriter, name: str) -> dict[str, Any] | None:
    section = writer.section(name)
    return section.get("thumbnails") if section else None


def _enter(writer: BankWriter, name: str, key: str) -> None:
    path = writer.folder / thumbnail_file(name)
    facts = {"file": thumbnail_file(name), "sha256": digest_file(path), "bytes": path.stat().st_size, "key": key}
    writer.update_section(name, thumbnails=facts)


def _pack(tile: Pixels) -> bytes:
    from PIL import Image

    sink = io.BytesIO()
    Image.fromarray(tile).save(sink, "JPEG", quality=QUALITY)
    return sink.getvalue()


def _unpack(data: NDArray[Any], path: Path) -> Pixels:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data.tobytes()), formats=("JPEG",)) as image:
            return np.array(image.convert("RGB"))
    except OSError as error:
        raise BankError(f"{path} holds a picture that cannot be read: {error}", "Verify the bank.") from error
