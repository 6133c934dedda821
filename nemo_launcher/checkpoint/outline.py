"""What a `.nemo` archive says about itself before a weight is read. Imports no torch: the launcher asks at launch."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_launcher.checkpoint.archive import CONFIG_NAME, WEIGHTS_NAME, Archive, parse_config
from nemo_launcher.errors import Problem, UserError

LOOKED_AT = 16 << 20
"""So many unpacked bytes of a compressed archive are looked at; unpacking all of it may take minutes."""


@dataclass(frozen=True, slots=True)
class StackSizes:
    """The sizes of one stack of layers, those of the whole model. gated: the feed-forward has a gate."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int
    gated: bool


@dataclass(frozen=True, slots=True)
class Outline:
    """config: `model_config.yaml`; sizes: of each file inside, in bytes; None: too much to unpack for knowing them."""

    path: Path
    config: dict[str, Any]
    sizes: dict[str, int] | None

    @property
    def weight_bytes(self) -> int | None:
        """Bytes of all weight files together; None when it takes too long to know."""
        if self.sizes is None:
            return None
        return sum(size for name, size in self.sizes.items() if name.endswith(WEIGHTS_NAME))


def read_outline(path: Path) -> Outline | None:
    """Return the outline of an archive; None when its configuration is not in what is looked at.

    Raises UserError when it is unreadable, no archive, cut short, or without a configuration.
    """
    if path.is_file() and _is_compressed(path):
        return _compressed_outline(path)
    with Archive(path) as archive:
        return Outline(path, archive.config(), {name: archive.size(name) for name in archive.names})


def is_t5(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration is a T5's: by its sections or, in older checkpoints, by the class it names."""
    sections = all(isinstance(config.get(name), Mapping) for name in ("encoder", "decoder"))
    return sections or str(config.get("target", "")).endswith("T5Model")


def stack_sections(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the keys that count for each stack of layers: encoder and decoder, or a GPT's one decoder."""
    if not is_t5(config):
        return {"decoder": dict(config)}
    return {name: {**config, **(config.get(name) or {})} for name in ("encoder", "decoder")}


def stack_sizes(section: Mapping[str, Any]) -> StackSizes:
    """Return the sizes in a stack's section, NeMo's defaults filled in; the section is free of `size_problems`."""
    heads, hidden = int(section["num_attention_heads"]), int(section["hidden_size"])
    multiquery = section.get("attention_type") == "multiquery"
    return StackSizes(
        num_layers=int(section["num_layers"]),
        hidden_size=hidden,
        ffn_hidden_size=int(section.get("ffn_hidden_size") or 4 * hidden),
        num_attention_heads=heads,
        num_query_groups=1 if multiquery else int(section.get("num_query_groups") or heads),
        kv_channels=int(section.get("kv_channels") or hidden // heads),
        gated=str(section.get("activation")).endswith("glu"),
    )


def _is_compressed(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def _compressed_outline(path: Path) -> Outline | None:
    try:
        with gzip.open(path) as stream:
            beginning = stream.read(LOOKED_AT)
            complete = len(beginning) < LOOKED_AT
        members, text = _members(beginning, complete)
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, ArithmeticError) as error:
        what = f"is cut short or not a .nemo archive ({error})"
        raise UserError(Problem(str(path), what, "copy or convert it again")) from error
    if text is not None:
        return Outline(path, parse_config(text, path), members if complete else None)
    if complete:
        raise UserError(Problem(str(path), f"holds no {CONFIG_NAME}: it is not a NeMo checkpoint"))
    return None


def _members(beginning: bytes, complete: bool) -> tuple[dict[str, int], bytes | None]:
    """Return name and size of the files that begin in `beginning`, and the configuration when all of it is there."""
    sizes: dict[str, int] = {}
    text: bytes | None = None
    with tarfile.open(fileobj=io.BytesIO(beginning), mode="r:") as tar:
        try:
            while (member := tar.next()) is not None:
                name, end = member.name.removeprefix("./"), member.offset_data + member.size
                if member.isfile():
                    sizes[name] = member.size
                    if name == CONFIG_NAME and end <= len(beginning):
                        text = beginning[member.offset_data : end]
        except tarfile.ReadError:
            if complete:
                raise
    return sizes, text
