# SPDX-License-Identifier: Apache-2.0
"""Mutants of the files that the project makes for itself: training checkpoints and data caches.

Structural mutants carry the checksum of what they hold, as somebody's who means harm would.
"""

from __future__ import annotations

import hashlib
import json
import random
import struct
import zlib
from typing import Any

from tests.reliability.containers import Safetensors
from tests.reliability.mutants import Json


class CheckpointFormat:
    """A training checkpoint: a first line with a checksum, JSON, safetensors."""

    def __init__(self, values: list[Any]) -> None:
        self.json = Json(
            [*values, {"$tensor": "x"}, {"$tuple": 3}, {"$items": [1]}, {"$float": "x"}, {"$items": [[[], 1]]}]
        )
        self.tensors = Safetensors(values)

    def harmless(self, draw: random.Random, content: bytes) -> bytes:
        text, tensors = _split(content)
        return _join(json.dumps(json.loads(text), indent=draw.choice((None, 0, 2))).encode(), tensors)

    def structural(self, draw: random.Random, content: bytes) -> bytes:
        text, tensors = _split(content)
        way = draw.randrange(10)
        if way < 6:
            return _join(self.json.structural(draw, text), tensors)
        if way < 9:
            return _join(text, self.tensors.structural(draw, tensors))
        line, _, rest = content.partition(b"\n")
        words = line.split(b" ")
        words[draw.randrange(len(words))] = draw.choice((b"", b"0", b"-1", b"9" * 4000, b"2", b"x" * 64))
        return b" ".join(words) + b"\n" + rest

    def parses(self, content: bytes) -> bool:
        try:
            text, tensors = _split(content)
        except Exception:
            return False
        return _join(text, tensors) == content and self.json.parses(text)


def _split(content: bytes) -> tuple[bytes, bytes]:
    line, _, rest = content.partition(b"\n")
    size = int(line.split(b" ")[-2])
    return rest[:size], rest[size:]


def _join(text: bytes, tensors: bytes) -> bytes:
    checksum = hashlib.sha256(text + tensors).hexdigest()
    return f"nemo-launcher checkpoint 1 {checksum} {len(text)} {len(tensors)}\n".encode() + text + tensors


_FOOTER = struct.Struct("<8sQQI")


class CacheFormat:
    """A data cache: integer tables, JSON with their positions, and a footer with sizes and a checksum."""

    def __init__(self, values: list[Any]) -> None:
        self.json = Json(
            [*values, ["int64", 5, 0], ["int64", 2**60, 0], ["object", 1, 0], ["int64", 1, -8], "T5Sample"]
        )

    def harmless(self, draw: random.Random, content: bytes) -> bytes:
        tables, text, magic = self._parts(content)
        return self._whole(tables, json.dumps(json.loads(text), indent=draw.choice((None, 1))).encode(), magic)

    def structural(self, draw: random.Random, content: bytes) -> bytes:
        tables, text, magic = self._parts(content)
        way = draw.randrange(4)
        if way == 0:
            changed = bytearray(tables)
            for _ in range(draw.choice((1, 5))):
                at = draw.randrange(len(tables) // 8) * 8
                changed[at : at + 8] = struct.pack("<q", draw.choice((-1, 0, 1, 2**31, 2**62, -(2**63))))
            return self._whole(bytes(changed), text, magic)
        if way == 1:
            sizes = (draw.choice((0, 2**40, len(tables))), draw.choice((0, 1, 2**63, len(text) + 1)))
            return tables + text + _FOOTER.pack(magic, *sizes, zlib.crc32(tables + text))
        return self._whole(tables, self.json.structural(draw, text), magic)

    def parses(self, content: bytes) -> bool:
        try:
            tables, text, magic = self._parts(content)
        except Exception:
            return False
        return self._whole(tables, text, magic) == content and self.json.parses(text)

    @staticmethod
    def _parts(content: bytes) -> tuple[bytes, bytes, bytes]:
        magic, size, length, _ = _FOOTER.unpack(content[-_FOOTER.size :])
        return content[: size - length], content[size - length : size], magic

    @staticmethod
    def _whole(tables: bytes, text: bytes, magic: bytes) -> bytes:
        footer = _FOOTER.pack(magic, len(tables) + len(text), len(text), zlib.crc32(tables + text))
        return tables + text + footer
