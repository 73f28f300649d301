"""Grey pictures as PNG, read and written in a screenful: no imaging library is loaded for a grid of digits.

Source: Portable Network Graphics, third edition, W3C 2025 (section 9.2 is the filters).
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def encode(picture: NDArray[np.float32]) -> bytes:
    """The PNG of ``picture[h, w]`` in 0 … 1, which is rounded to 8 bits; what lies outside is cut off."""
    grey = np.rint(np.clip(np.nan_to_num(picture), 0, 1) * 255).astype(np.uint8)
    height, width = grey.shape
    lines = np.zeros((height, width + 1), np.uint8)  # filter 0 before each line
    lines[:, 1:] = grey
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b""))
    return SIGNATURE + b"".join(chunk(kind, content) for kind, content in parts)


def chunk(kind: bytes, content: bytes) -> bytes:
    """A part of the file: its length, its kind, its content and their CRC."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def decode(content: bytes) -> NDArray[np.float32]:
    """``picture[h, w]`` in 0 … 1 of an 8-bit grey PNG that is not interlaced. Raises ValueError for any other."""
    if not content.startswith(SIGNATURE):
        raise ValueError("this is no PNG")
    packed, place = b"", len(SIGNATURE)
    width = height = 0
    while place < len(content):
        (length,) = struct.unpack_from(">I", content, place)
        kind, body = content[place + 4 : place + 8], content[place + 8 : place + 8 + length]
        place += length + 12
        if kind == b"IHDR":
            width, height, *form = struct.unpack(">IIBBBBB", body)
            if form != [8, 0, 0, 0, 0]:
                raise ValueError("only 8-bit grey pictures without interlacing are read")
        elif kind == b"IDAT":
            packed += body
    lines = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, width + 1)
    return (unfiltered(lines) / np.float32(255)).astype(np.float32)


def unfiltered(lines: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lines without their filters: each byte was stored less a guess from its neighbours, modulo 256."""
    height, width = lines.shape[0], lines.shape[1] - 1
    found = np.zeros((height, width), np.uint8)
    above = np.zeros(width, np.uint8)
    for row in range(height):
        kind, line = int(lines[row, 0]), lines[row, 1:]
        match kind:
            case 0:
                found[row] = line
            case 1:  # less the left neighbour
                found[row] = np.cumsum(line, dtype=np.uint64).astype(np.uint8)
            case 2:  # less the one above
                found[row] = line + above
            case 3 | 4:
                found[row] = recurrent(line.tolist(), above.tolist(), kind)
            case _:
                raise ValueError(f"a PNG has no filter {kind}")
        above = found[row]
    return found


def recurrent(line: list[int], above: list[int], kind: int) -> list[int]:
    """A line whose guess is (3) the mean of left and above, or (4) Paeth's, the nearest of three neighbours."""
    found, left, corner = [], 0, 0
    for stored, up in zip(line, above, strict=True):
        if kind == 3:
            guess = (left + up) // 2
        else:
            estimate = left + up - corner
            guess = min((left, up, corner), key=lambda near: abs(estimate - near))  # the first of equals
        left, corner = (stored + guess) % 256, up
        found.append(left)
    return found


def grid(pictures: NDArray[np.float32], columns: int, gap: int = 1, scale: int = 4) -> NDArray[np.float32]:
    """``pictures[n, h, w]`` in rows of `columns`, white lines between them, each pixel `scale` times as large."""
    count, height, width = pictures.shape
    rows = -(-count // columns)
    sheet = np.ones((rows * (height + gap) + gap, columns * (width + gap) + gap), np.float32)
    for k, picture in enumerate(pictures):
        top, left = (k // columns) * (height + gap) + gap, (k % columns) * (width + gap) + gap
        sheet[top : top + height, left : left + width] = picture
    return np.repeat(np.repeat(sheet, scale, 0), scale, 1)
