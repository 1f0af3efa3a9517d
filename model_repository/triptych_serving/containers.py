"""How a picture's file is put together, read before Pillow sees it: work that does not grow with what strangers pack into it.

Decoders take time for every part of a file and every scan of a JPEG, and memory for every pixel that a header claims. So parts
are counted and claims compared with what the file can hold; only lengths and sizes are looked at. A cut file is known here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

MAX_PARTS = 10_000  # chunks, segments or frames: a PNG of 32 MiB in pieces of 4 KiB has 8,192
MAX_SCANS = 100  # of a JPEG; progressive ones have about ten
PNG, RIFF, JPEG = b"\x89PNG\r\n\x1a\n", b"RIFF", b"\xff\xd8\xff"
# Deflate makes at most so many bytes of one.
_DEFLATE = 1032
_NOTES = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_START_OF_SCAN, _END = 0xDA, 0xD9
_BARE = {0x01, *range(0xD0, 0xD8)}  # JPEG's markers without a length
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


class Damaged(ValueError):
    """The file is cut, or claims what it cannot hold."""


class TooMany(ValueError):
    """`given` and `legal` in words."""

    def __init__(self, limit: int, what: str) -> None:
        super().__init__(f"more than {limit} {what}")
        self.given, self.legal = str(self), f"at most {limit} {what}"


class Claims(NamedTuple):
    """What a header says, and the least bytes of data that such a picture takes."""

    width: int
    height: int
    least_bytes: int
    bytes: int


def claims(data: bytes) -> Claims | None:
    """The claims of a PNG, JPEG or WebP file; None for any other.

    Raises:
        Damaged, TooMany: see there.
    """
    try:
        if data.startswith(PNG):
            return _png(data)
        if data.startswith(JPEG):
            return _jpeg(data)
        if data.startswith(RIFF) and data[8:12] == b"WEBP":
            return _webp(data)
    except (struct.error, IndexError):
        raise Damaged("cut off") from None
    return None


def _png(data: bytes) -> Claims:
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    size, at, compressed = len(data), len(PNG), 0
    for _ in range(MAX_PARTS):
        length, kind = struct.unpack_from(">I4s", data, at)
        at += 12 + length
        if at > size:
            raise Damaged("cut off")
        if kind == b"IDAT":
            compressed += length
        elif kind == b"IEND":
            return Claims(width, height, width * height * depth * _CHANNELS.get(colour, 1) // 8 // _DEFLATE, compressed)
    raise TooMany(MAX_PARTS, "chunks")


def notes_first(data: bytes) -> bytes:
    """A PNG whose EXIF and texts stand before its pixels, where they can be read without these; anything else as it is."""
    if not data.startswith(PNG):
        return data
    at, begins, behind = len(PNG), 0, []
    try:
        for _ in range(MAX_PARTS):
            length, kind = struct.unpack_from(">I4s", data, at)
            if kind == b"IDAT":
                begins = begins or at
            elif begins and kind in _NOTES:
                behind.append(slice(at, at + 12 + length))
            at += 12 + length
    except struct.error:
        pass  # the end
    if not behind:
        return data
    rest, ends = [], [begins, *(part.stop for part in behind)]
    for begin, part in zip(ends, behind, strict=False):
        rest.append(data[begin : part.start])
    return b"".join((data[:begins], *(data[part] for part in behind), *rest, data[ends[-1] :]))


def _jpeg(data: bytes) -> Claims:
    width = height = 0
    bits = 2  # of a block of 8 × 8 pixels, at least: a difference and the end of the block; progressive ones share ends
    for kind, at in _segments(data):
        if kind in _FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 3)
            bits = 1 if kind in (0xC2, 0xC6, 0xCA, 0xCE) else 2
        elif kind == _START_OF_SCAN:
            if data.count(b"\xff\xda", at) > MAX_SCANS:
                raise TooMany(MAX_SCANS, "scans")
            if data.find(b"\xff\xd9", at) < 0:
                raise Damaged("cut off")
            blocks = -(-width // 8) * -(-height // 8)
            return Claims(width, height, blocks * bits // 8, len(data) - at)
    raise Damaged("no picture in it")


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Each marker up to the first scan, and where its length stands."""
    at = 2
    for _ in range(MAX_PARTS):
        if data[at] != 0xFF:
            raise Damaged("no marker where one should be")
        while data[at] == 0xFF:  # any number of these may stand before a marker
            at += 1
        kind = data[at]
        at += 1
        yield kind, at
        if kind not in _BARE:
            at += max(2, struct.unpack_from(">H", data, at)[0])
    raise TooMany(MAX_PARTS, "segments")


def _webp(data: bytes) -> Claims:
    end = 8 + struct.unpack_from("<I", data, 4)[0]
    if end > len(data):
        raise Damaged("cut off")
    at, size = 12, None
    for _ in range(MAX_PARTS):
        if at + 8 > end:
            break
        kind, length = struct.unpack_from("<4sI", data, at)
        size = size or _webp_size(kind, data, at + 8)
        at += 8 + length + length % 2
    else:
        raise TooMany(MAX_PARTS, "chunks")
    if size is None or at > end + 1:  # the last one's padding may be missing
        raise Damaged("cut off")
    return Claims(*size, 0, len(data))


def _webp_size(kind: bytes, data: bytes, at: int) -> tuple[int, int] | None:
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at + k : at + k + 3], "little") + 1 for k in (4, 7))
        return width, height
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, at + 1)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, at + 6)
        return width & 0x3FFF, height & 0x3FFF
    return None
