"""Seeded damage to files: what disks, networks and interrupted copies do to them, and what a malicious hand would.

Knows bytes, and where TIFF, HDF5, zip, JSON and CSV keep their sizes. Opens nothing and asserts nothing.
"""

import random
import re
import struct
from collections.abc import Callable
from pathlib import Path

Mutation = Callable[[bytes, random.Random], bytes]
ABSURD = (0, 1, 0x7F, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)
_TYPES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_HDF5_SIGNATURES = (b"OHDR", b"TREE", b"SNOD", b"HEAP", b"GCOL", b"BTHD", b"FRHP", b"FADB", b"EAHD", b"\x89HDF")
_HEADS = (
    b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0", b"\x89HDF\r\n\x1a\n",
    b"PK\x03\x04\x14\0",
    b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0\0\x10JFIF\0", b"\0" * 128 + b"DICM", b"\x93NUMPY\x01\0", b"PAR1", b"{\n",
    b"\x80\x04\x95", b"\x1f\x8b\x08\0", b"slide,mpp\n",
)  # fmt: skip


def mutate(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Damages a file.

    Args:
        content: its bytes.
        rng: decides how and where.

    Returns:
        what was done, and the bytes, which differ from those before.
    """
    while True:
        kind = rng.choice(sorted(MUTATIONS))
        made = MUTATIONS[kind](content, rng)
        if made != content:
            return kind, made


def mutate_file(path: Path, rng: random.Random) -> str:
    """Damages a file in its place; what was done."""
    kind, made = mutate(path.read_bytes(), rng)
    path.unlink()  # it may be a link to the whole one
    path.write_bytes(made)
    return f"{kind} in {path.name}"


def _flip_bits(content: bytes, rng: random.Random) -> bytes:
    made = bytearray(content)
    low, high = _part(len(made), rng)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        if high > low:
            made[rng.randrange(low, high)] ^= 1 << rng.randrange(8)
    return bytes(made)


def _truncate(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.choice((rng.randrange(len(content) + 1), max(0, len(content) - rng.randint(1, 200))))]


def _zero_run(content: bytes, rng: random.Random) -> bytes:
    low, high = _part(len(content), rng)
    n = rng.choice((4, 16, 512, 4096, len(content) // 3))
    at = rng.randrange(low, max(low + 1, high))
    return content[:at] + bytes(len(content[at : at + n])) + content[at + n :]


def _swap_header(content: bytes, rng: random.Random) -> bytes:
    head = rng.choice(_HEADS)
    return head + content[len(head) :] if rng.random() < 0.7 else head


def _insert(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.randbytes(rng.choice((1, 7, 300))) + content[at:]


def _repeat(content: bytes, rng: random.Random) -> bytes:
    at, n = rng.randrange(len(content) + 1), rng.choice((16, 1000, 100_000))
    return content[:at] + content[max(0, at - n) : at] * 2 + content[at:]


def _garbage(content: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(rng.choice((0, 1, 100, len(content))))


def _absurd_size(content: bytes, rng: random.Random) -> bytes:
    """Puts a number where the format keeps one: sizes, counts, offsets."""
    if content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        place = _in_tiff(content, rng)
    elif content.startswith(b"\x89HDF"):
        place = _after(content, _HDF5_SIGNATURES, 64, rng)
    elif content.startswith(b"PK"):
        place = _after(content, (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06"), 46, rng)
    elif b"\0" not in content[:4096]:
        return _absurd_number(content, rng)
    else:
        low, high = _part(len(content), rng)
        place = rng.randrange(low, max(low + 1, high)), rng.choice((2, 4, 8))
    if place is None:
        return content
    at, width = place
    order = "big" if content[:2] == b"MM" else "little"
    number = rng.choice(ABSURD) & ((1 << 8 * width) - 1)
    return content[:at] + number.to_bytes(width, order)[: len(content) - at] + content[at + width :]


def _in_tiff(content: bytes, rng: random.Random) -> tuple[int, int] | None:
    """Count or value of an entry of one of the directories, or a directory's number of entries."""
    order = "<" if content[:2] == b"II" else ">"
    big = content[2:4] in (b"+\0", b"\0+")
    width, entry, head = (8, 20, 8) if big else (4, 12, 2)
    entries: list[tuple[int, int]] = []
    at = struct.unpack_from(order + "Q", content, 8)[0] if big else struct.unpack_from(order + "I", content, 4)[0]
    for _ in range(100):
        if not 0 < at < len(content) - head:
            break
        n = struct.unpack_from(order + ("Q" if big else "H"), content, at)[0]
        entries.append((at, head))
        end = at + head + n * entry
        if n > 1000 or end + width > len(content):
            break
        for i in range(n):
            place = at + head + i * entry
            _, kind = struct.unpack_from(order + "HH", content, place)
            entries += [(place + 4, width), (place + 4 + width, min(width, _TYPES.get(kind, width))), (place + 2, 2)]
        at = struct.unpack_from(order + ("Q" if big else "I"), content, end)[0]
    return rng.choice(entries) if entries else None


def _after(content: bytes, signatures: tuple[bytes, ...], within: int, rng: random.Random) -> tuple[int, int] | None:
    found = [m.end() for s in signatures for m in re.finditer(re.escape(s), content)]
    return (rng.choice(found) + rng.randrange(within), rng.choice((1, 2, 4, 8))) if found else None


def _absurd_number(content: bytes, rng: random.Random) -> bytes:
    """Another number, or something that is none, in the place of a number in a text."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?", content))
    if not found:
        return content
    at = rng.choice(found)
    new = rng.choice((b"-1", b"0", b"1e300", b"nan", b"inf", b"9" * 30, b"1e-300", b"null", b'"x"', b"[" * 5000, b""))
    return content[: at.start()] + new + content[at.end() :]


def _part(size: int, rng: random.Random) -> tuple[int, int]:
    """All of a file, its beginning, or its end, where most sizes stand."""
    return rng.choice(((0, size), (0, min(size, 2048)), (max(0, size - 4096), size)))


MUTATIONS: dict[str, Mutation] = {
    "absurd size": _absurd_size, "absurd size again": _absurd_size, "bits flipped": _flip_bits, "cut": _truncate,
    "garbage": _garbage, "inserted": _insert, "repeated": _repeat, "swapped header": _swap_header,
    "zeros": _zero_run,
}  # fmt: skip
"""By name; absurd sizes twice, since they find the most."""
