# SPDX-License-Identifier: Apache-2.0
"""Mutants of binary formats: tar archives, torch.save's zip files with their pickles, safetensors, GGUF."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import random
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.reliability.mutants import Format, damaged, edited, shuffled


class Tar:
    """A plain or gzipped tar. formats: how members are mutated, by suffix of their names."""

    def __init__(self, formats: Mapping[str, Format], canary: Path) -> None:
        self.formats = formats
        self.names = [
            *(str(canary), f"/{canary}", f"tokenizer/{canary}", f"../{canary.name}", f"tokenizer/../../{canary.name}"),
            *(
                "",
                ".",
                "a//b",
                "a/./b",
                "a\\..\\b",
                "MODEL_CONFIG.YAML",
                "model_config.yaml/x",
                "model_config.yaml",
                "é",
            ),
            *(
                "x" * 300,
                "a\nb",
                "a\x00b",
                "model_weights.ckpt",
                "mp_rank_00/model_weights.ckpt",
                "model_weights/.metadata",
            ),
        ]

    def harmless(self, draw: random.Random, content: bytes) -> bytes:
        members = _members(content)
        way = draw.randrange(6)
        if way == 0:
            draw.shuffle(members)
        elif way == 1:
            for info, _ in members:
                info.mtime, info.uid, info.uname, info.mode = draw.randrange(2**30), 1000, "user", 0o600
        elif way == 2:
            for info, _ in members:
                info.name = info.name.removeprefix("./")
        elif way == 3:
            at = draw.choice([i for i, (info, _) in enumerate(members) if self._format(info.name) is not None])
            info, body = members[at]
            members[at] = (info, self._format(info.name).harmless(draw, body))  # type: ignore[union-attr]
        elif way == 4:
            return _tar(members, "w:gz")
        return _tar(members, "w", draw.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)))

    def structural(self, draw: random.Random, content: bytes) -> bytes:
        members = _members(content)
        at = draw.randrange(len(members))
        info, body = members[at]
        way = draw.randrange(10)
        if way < 5:
            known = [i for i, (info, _) in enumerate(members) if self._format(info.name) is not None]
            at = draw.choice(known)
            info, body = members[at]
            change = self._format(info.name).structural if draw.random() < 0.8 else damaged  # type: ignore[union-attr]
            members[at] = (info, change(draw, body))
        elif way == 5:
            added = tarfile.TarInfo(draw.choice(self.names))
            members.insert(draw.randrange(len(members) + 1), (added, draw.choice((b"", b"owned", body))))
        elif way == 6:
            info.name = draw.choice(self.names)
        elif way == 7:
            kinds = (
                tarfile.SYMTYPE,
                tarfile.LNKTYPE,
                tarfile.CHRTYPE,
                tarfile.FIFOTYPE,
                tarfile.DIRTYPE,
                tarfile.GNUTYPE_SPARSE,
                b"?",
            )
            info.type, info.linkname = draw.choice(kinds), draw.choice(("/etc/passwd", "model_config.yaml", "../x"))
        elif way == 8:
            info.pax_headers = {
                draw.choice(("path", "size", "linkpath", "GNU.sparse.map")): draw.choice(
                    (*self.names[:5], "-1", "9" * 30)
                )
            }
        else:
            members.pop(at) if draw.random() < 0.5 else members.append((info, body))
        return _tar(members, "w:gz" if draw.random() < 0.2 else "w")

    def parses(self, content: bytes) -> bool:
        try:
            members = _members(content)
        except Exception:
            return False
        found = [(self._format(info.name), body) for info, body in members]
        return bool(members) and all(known is None or known.parses(body) for known, body in found)

    def _format(self, name: str) -> Format | None:
        return next((known for end, known in self.formats.items() if name.endswith(end)), None)


def _members(content: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return [(info, tar.extractfile(info).read() if info.isfile() else b"") for info in tar.getmembers()]  # type: ignore[union-attr]


def _tar(members: list[tuple[tarfile.TarInfo, bytes]], mode: str, kind: int = tarfile.PAX_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode, format=kind) as tar:  # type: ignore[call-overload]
        for info, body in members:
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return stream.getvalue()


class TorchZip:
    """A torch.save file: a zip with a pickle and the bytes of each storage."""

    def __init__(self, canary: Path) -> None:
        command = f"touch {canary}"
        self.calls = [(b"os", b"system", command), (b"builtins", b"exec", f"import os; os.system({command!r})")]
        self.calls += [
            (b"posix", b"system", command),
            (b"torch", b"load", str(canary)),
            (b"pathlib", b"Path.touch", "x"),
        ]

    def harmless(self, draw: random.Random, content: bytes) -> bytes:
        return content  # NeMo and torch accept only one encoding

    def structural(self, draw: random.Random, content: bytes) -> bytes:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
        at = next(i for i, (name, _) in enumerate(entries) if name.endswith("data.pkl"))
        way = draw.randrange(8)
        if way < 5:
            entries[at] = (entries[at][0], self._other_pickle(draw, entries[at][1]))
        elif way == 5:
            entries.pop(draw.randrange(len(entries)))
        elif way == 6:
            name, body = draw.choice(entries)
            entries.append(
                (draw.choice((name, f"../{name}", name.upper(), "archive/data/999", "/x")), body[: len(body) // 2])
            )
        else:
            other = draw.randrange(len(entries))
            entries[other] = (entries[other][0], damaged(draw, entries[other][1] or b"x"))
        stream = io.BytesIO()
        with zipfile.ZipFile(
            stream, "w", zipfile.ZIP_DEFLATED if draw.random() < 0.2 else zipfile.ZIP_STORED
        ) as archive:
            for name, body in entries:
                archive.writestr(name, body)
        return stream.getvalue()

    def _other_pickle(self, draw: random.Random, code: bytes) -> bytes:
        """Return a pickle with an operation removed, duplicated or changed, or with an added call."""
        places = [(position, operation, argument) for operation, argument, position in pickletools.genops(code)]
        index = draw.randrange(1, len(places) - 1)
        start, stop = places[index][0], places[index + 1][0]
        way = draw.randrange(6)
        if way == 0:
            return code[:start] + code[stop:]
        if way == 1:
            return code[:stop] + code[start:stop] + code[stop:]
        if way == 2:
            module, name, argument = draw.choice(self.calls)
            call = b"c" + module + b"\n" + name + b"\n" + b"X" + struct.pack("<I", len(argument)) + argument.encode()
            call += b"\x85R" + draw.choice((b"", b"0"))
            return code[:start] + call + code[start:]
        names = [i for i, (_, operation, _) in enumerate(places) if operation.name == "GLOBAL"]
        numbers = [
            i for i, (_, operation, _) in enumerate(places) if operation.name in ("BININT", "BININT1", "BININT2")
        ]
        if way == 3 and names:
            at = draw.choice(names)
            module, name, _ = draw.choice(self.calls)
            other = draw.choice(
                (b"c" + module + b"\n" + name + b"\n", b"ctorch\nHalfStorage\n", b"ctorch._utils\n_rebuild_parameter\n")
            )
            return code[: places[at][0]] + other + code[places[at + 1][0] :]
        if numbers:
            at = draw.choice(numbers)
            value = draw.choice((0, -1, 1, 2**31 - 1, -(2**31), 2**40, 10**100))
            return code[: places[at][0]] + pickle.dumps(value, 2)[2:-1] + code[places[at + 1][0] :]
        return damaged(draw, code)

    def parses(self, content: bytes) -> bool:
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                (name,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
                return archive.testzip() is None and bool(list(pickletools.genops(archive.read(name))))
        except Exception:
            return False


class Safetensors:
    """A JSON header after its length, then the bytes of the tensors."""

    def __init__(self, values: list[Any]) -> None:
        self.values = [*values, [0, 2**62], [-1, 4], [8, 4], "F64", "F4", "BF16", [2**40, 2**40], [0]]

    def harmless(self, draw: random.Random, content: bytes) -> bytes:
        header, body = _split_safetensors(content)
        tree = shuffled(draw, json.loads(header))
        tree.setdefault("__metadata__", {})["remark"] = "x"
        return _join_safetensors(
            json.dumps(tree, indent=draw.choice((None, 1))).encode() + b" " * draw.randrange(9), body
        )

    def structural(self, draw: random.Random, content: bytes) -> bytes:
        header, body = _split_safetensors(content)
        way = draw.randrange(8)
        if way == 0:
            return struct.pack("<Q", draw.choice((0, 1, 2**63, 2**64 - 1, len(header) + 1, 10**8))) + header + body
        if way == 1:
            return _join_safetensors(header, body[: draw.randrange(len(body))])
        if way == 2:
            return _join_safetensors(header, body + bytes(draw.choice((1, 8, 4096))))
        tree = json.loads(header)
        if way < 6:
            names = [name for name in tree if name != "__metadata__"]
            name = draw.choice(names)
            tree[name] = edited(draw, tree[name], self.values) if draw.random() < 0.7 else tree[draw.choice(names)]
            if draw.random() < 0.2:
                tree[draw.choice((f"module.{name}", "x", name.upper()))] = tree.pop(name)
        else:
            tree = edited(draw, tree, self.values)
        return _join_safetensors(json.dumps(tree).encode(errors="surrogatepass"), body)

    def parses(self, content: bytes) -> bool:
        try:
            return isinstance(json.loads(_split_safetensors(content)[0]), dict)
        except Exception:
            return False


def _split_safetensors(content: bytes) -> tuple[bytes, bytes]:
    (size,) = struct.unpack("<Q", content[:8])
    if size > len(content):
        raise ValueError("a header longer than the file")
    return content[8 : 8 + size], content[8 + size :]


def _join_safetensors(header: bytes, body: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + body
