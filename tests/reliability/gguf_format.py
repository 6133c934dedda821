# SPDX-License-Identifier: Apache-2.0
"""GGUF as values (metadata and table of tensors), a small file in the format, and its mutants."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.reliability.mutants import damaged

_NUMBERS = {0: "B", 1: "b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _ARRAY = 8, 9
_ALIGNMENT = 32


@dataclass
class Gguf:
    """metadata: (key, type, value), an array's value being (type of its items, items); tensors: (name, dims, type,
    offset in `data`).
    """

    version: int
    metadata: list[tuple[str, int, Any]]
    tensors: list[tuple[str, list[int], int, int]]
    data: bytes

    @classmethod
    def read(cls, content: bytes) -> Gguf:
        """Parse a file. Raises ValueError or struct.error."""
        reader = _Reader(content)
        if reader.take(4) != b"GGUF":
            raise ValueError("not GGUF")
        version, num_tensors, num_values = reader.number("<I"), reader.number("<Q"), reader.number("<Q")
        if max(num_tensors, num_values) > len(content):
            raise ValueError("more entries than bytes")
        metadata = []
        for _ in range(num_values):
            key, kind = reader.text().decode(errors="surrogateescape"), reader.number("<I")
            metadata.append((key, kind, reader.value(kind)))
        tensors = []
        for _ in range(num_tensors):
            name, count = reader.text().decode(errors="surrogateescape"), reader.number("<I")
            dims = [reader.number("<Q") for _ in range(count)]
            tensors.append((name, dims, reader.number("<I"), reader.number("<Q")))
        return cls(version, metadata, tensors, content[-(-reader.at // _ALIGNMENT) * _ALIGNMENT :])

    def write(self, num_tensors: int | None = None, num_values: int | None = None) -> bytes:
        """Return the file; the numbers in its header are correct unless given."""
        counts = (
            num_tensors if num_tensors is not None else len(self.tensors),
            num_values if num_values is not None else len(self.metadata),
        )
        head = b"GGUF" + struct.pack("<IQQ", self.version, *counts)
        for key, kind, value in self.metadata:
            head += _packed_text(key) + struct.pack("<I", kind) + _packed(kind, value)
        for name, dims, kind, offset in self.tensors:
            head += _packed_text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
        return head + bytes(-len(head) % _ALIGNMENT) + self.data


class _Reader:
    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0

    def take(self, size: int) -> bytes:
        if self.at + size > len(self.content):
            raise ValueError("cut short")
        self.at += size
        return self.content[self.at - size : self.at]

    def number(self, code: str) -> Any:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def text(self) -> bytes:
        return self.take(self.number("<Q"))

    def value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self.text()
        if kind == _ARRAY:
            of, count = self.number("<I"), self.number("<Q")
            return of, [self.value(of) for _ in range(count)]
        if kind not in _NUMBERS:
            raise ValueError(f"type {kind}")
        return self.number(_NUMBERS[kind])


def _packed_text(text: str | bytes) -> bytes:
    content = text if isinstance(text, bytes) else text.encode(errors="surrogateescape")
    return struct.pack("<Q", len(content)) + content


def _packed(kind: int, value: Any) -> bytes:
    if kind == _TEXT:
        return _packed_text(value)
    if kind == _ARRAY:
        of, items = value
        return struct.pack("<IQ", of, len(items)) + b"".join(_packed(of, item) for item in items)
    return struct.pack(_NUMBERS[kind], value)


def write_llama(path: Path, tokenizer_json: dict[str, Any], seed: int = 0) -> Path:
    """Write a random Llama of 2 layers and 32 hidden values, all in float32, with a byte-level BPE vocabulary."""
    model = tokenizer_json["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    special = {token["content"] for token in tokenizer_json["added_tokens"]}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    draw = np.random.default_rng(seed)
    hidden, ffn, kv, tensors, blobs, offset = 32, 48, 16, [], [], 0
    shapes = {"token_embd.weight": (len(tokens), hidden), "output_norm.weight": (hidden,)}
    for layer in range(2):
        sizes = {"attn_norm": (hidden,), "ffn_norm": (hidden,), "attn_q": (hidden, hidden), "attn_k": (kv, hidden)}
        sizes |= {"attn_v": (kv, hidden), "attn_output": (hidden, hidden)}
        sizes |= {"ffn_gate": (ffn, hidden), "ffn_up": (ffn, hidden), "ffn_down": (hidden, ffn)}
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in sizes.items()}
    for name, shape in shapes.items():
        values = draw.normal(0, 0.3, shape) if len(shape) > 1 else draw.uniform(0.5, 1.5, shape)
        blob = values.astype("<f4").tobytes()
        tensors.append((name, list(reversed(shape)), 0, offset))
        blobs.append(blob + bytes(-len(blob) % _ALIGNMENT))
        offset += len(blobs[-1])
    metadata: list[tuple[str, int, Any]] = [
        ("general.architecture", _TEXT, b"llama"),
        ("general.name", _TEXT, b"tiny"),
        ("general.file_type", 4, 0),
        ("llama.block_count", 4, 2),
        ("llama.context_length", 4, 256),
        ("llama.embedding_length", 4, hidden),
        ("llama.feed_forward_length", 4, ffn),
        ("llama.attention.head_count", 4, 4),
        ("llama.attention.head_count_kv", 4, 2),
        ("llama.attention.layer_norm_rms_epsilon", 6, 1e-5),
        ("llama.rope.freq_base", 6, 10000.0),
        ("llama.rope.dimension_count", 4, 8),
        ("llama.vocab_size", 4, len(tokens)),
        ("tokenizer.ggml.model", _TEXT, b"gpt2"),
        ("tokenizer.ggml.pre", _TEXT, b"gpt-2"),
        ("tokenizer.ggml.tokens", _ARRAY, (_TEXT, [token.encode() for token in tokens])),
        ("tokenizer.ggml.token_type", _ARRAY, (5, [3 if token in special else 1 for token in tokens])),
        ("tokenizer.ggml.merges", _ARRAY, (_TEXT, [merge.encode() for merge in merges])),
        ("tokenizer.ggml.bos_token_id", 4, 1),
        ("tokenizer.ggml.eos_token_id", 4, 2),
        ("tokenizer.ggml.padding_token_id", 4, 0),
        ("tokenizer.ggml.add_bos_token", 7, False),
    ]
    path.write_bytes(Gguf(3, metadata, tensors, b"".join(blobs)).write())
    return path


class GgufFormat:
    """Mutants of a GGUF file."""

    def harmless(self, draw: random.Random, content: bytes) -> bytes:
        file = Gguf.read(content)
        first, rest = file.metadata[0], file.metadata[1:]
        draw.shuffle(rest)
        file.metadata = [first, *rest]  # the format requires the architecture first
        file.metadata.append(("general.description", _TEXT, draw.choice((b"x", "é".encode(), b""))))
        draw.shuffle(file.tensors)
        return file.write()

    def structural(self, draw: random.Random, content: bytes) -> bytes:
        file = Gguf.read(content)
        way = draw.randrange(10)
        if way < 5:
            self._other_value(draw, file)
        elif way == 5:
            file.metadata.pop(draw.randrange(len(file.metadata)))
        elif way == 6:
            file.metadata.append(draw.choice(file.metadata))
        elif way == 7:
            self._other_tensor(draw, file)
        elif way == 8:
            file.tensors.pop(draw.randrange(len(file.tensors))) if draw.random() < 0.5 else file.tensors.append(
                draw.choice(file.tensors)
            )
        else:
            huge = draw.choice((0, 1, 2**32, 2**63, 2**64 - 1))
            file.version = draw.choice((3, 3, 2, 1, 0, 4, 2**31))
            return file.write(huge, None) if draw.random() < 0.5 else file.write(None, huge)
        return file.write()

    def _other_value(self, draw: random.Random, file: Gguf) -> None:
        at = draw.randrange(len(file.metadata))
        key, kind, value = file.metadata[at]
        if draw.random() < 0.15:
            kind, value = draw.choice(
                (
                    (4, 7),
                    (_TEXT, b"x"),
                    (_ARRAY, (4, [])),
                    (12, float("nan")),
                    (7, True),
                    (_ARRAY, (_ARRAY, [(4, [1])])),
                )
            )
        elif kind == _TEXT:
            value = draw.choice(
                (b"", b"llama", b"gpt2", b"t5", b"bert", b"\xff\xfe", b"x" * 100_000, b"../x", b"yarn", b"linear")
            )
        elif kind == _ARRAY:
            of, items = value
            items = list(items)
            place = draw.randrange(len(items))
            change = draw.randrange(5)
            if change == 0:
                items.pop(place)
            elif change == 1:
                items.append(items[place])
            elif change == 2:
                items[place] = (
                    draw.choice((b"", b"\xff", items[0], b"a b c", "é".encode()))
                    if of == _TEXT
                    else draw.choice((0, 6, -1))
                )
            elif change == 3:
                draw.shuffle(items)
            else:
                items = items[:place]
            value = (of, items)
        elif kind in (6, 12):
            value = draw.choice((0.0, -1.0, float("nan"), float("inf"), 1e-30, 1e30))
        elif kind != 7:
            low = draw.choice((0, 1, 2, 3, 5, 7, 33, 1000, 2**16, 2**31 - 1))
            value = min(low, 255) if kind < 2 else low
        else:
            value = not value
        file.metadata[at] = (key, kind, value)

    def _other_tensor(self, draw: random.Random, file: Gguf) -> None:
        at = draw.randrange(len(file.tensors))
        name, dims, kind, offset = file.tensors[at]
        way = draw.randrange(5)
        if way == 0:
            name = draw.choice((name.upper(), f"{name}x", "rope_freqs.weight", file.tensors[0][0], ""))
        elif way == 1:
            dims = draw.choice(
                ([*dims, 1], dims[:-1], [0, *dims[1:]], [2**40] * 2, [2**63, 2], list(reversed(dims)), [1] * 9)
            )
        elif way == 2:
            kind = draw.choice((1, 2, 8, 12, 30, 31, 999, 2**32 - 1))
        elif way == 3:
            offset = draw.choice((0, 1, offset + 32, 2**40, 2**64 - 1, len(file.data)))
        else:
            file.data = damaged(draw, file.data)
        file.tensors[at] = (name, dims, kind, offset)

    def parses(self, content: bytes) -> bool:
        try:
            Gguf.read(content)
        except Exception:
            return False
        return True
