# SPDX-License-Identifier: GPL-3.0-or-later
"""Width and height of PNG and JPEG files from their headers: standard library only."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_START = b"\xff\xd8"
# Frame headers are C0 to CF without C4 (Huffman tables), C8 (reserved), CC (arithmetic coding).
_JPEG_FRAMES = {bytes([code]) for code in range(0xC0, 0xD0) if code not in (0xC4, 0xC8, 0xCC)}
_JPEG_LAST = (b"\xd9", b"\xda")  # end of image, start of scan: no frame header came


def image_size(path: Path) -> tuple[int, int] | None:
    """Width and height as stored (EXIF orientation not applied); None if they cannot be told."""
    try:
        with open(path, "rb") as file:
            head = file.read(24)
            if head.startswith(_PNG_SIGNATURE):
                return struct.unpack(">II", head[16:24])
            if head.startswith(_JPEG_START):
                file.seek(len(_JPEG_START))
                return _jpeg_size(file)
    except (OSError, struct.error):  # no access, or cut short: the caller says so
        return None
    return None


def _jpeg_size(file: BinaryIO) -> tuple[int, int] | None:
    """Walk the segments up to the frame header."""
    while file.read(1) == b"\xff":
        marker = file.read(1)
        while marker == b"\xff":  # padding
            marker = file.read(1)
        (length,) = struct.unpack(">H", file.read(2))
        if marker in _JPEG_FRAMES:
            _, height, width = struct.unpack(">BHH", file.read(5))
            return width, height
        if marker in _JPEG_LAST:
            return None
        file.seek(length - 2, 1)
    return None
