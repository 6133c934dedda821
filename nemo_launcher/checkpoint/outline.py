# SPDX-License-Identifier: Apache-2.0
"""The outline of a `.nemo` archive, read without its weights. Imports no torch, for use in the launcher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nemo_launcher.checkpoint.adapter_copy import is_copy, read_copy_config
from nemo_launcher.checkpoint.archive import CONFIG_NAME, WEIGHTS_NAME, Archive, damaged_as_user_error, parse_config
from nemo_launcher.checkpoint.dist_metadata import distributed_folder, distributed_problem, read_metadata
from nemo_launcher.checkpoint.other_forms import unknown_format_problem
from nemo_launcher.checkpoint.streams import is_compressed, unpacking
from nemo_launcher.checkpoint.tar_index import Reader, check_names
from nemo_launcher.config.families import is_t5
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.foreign_yaml import MAX_YAML_BYTES
from nemo_launcher.files.values import Section, below, number, whole

MAX_UNPACKED_BYTES = 16 << 20
"""The unpacked bytes of a compressed archive that are read; unpacking all of it may take minutes."""


@dataclass(frozen=True, slots=True)
class StackSizes:
    """The sizes of one stack of layers in the complete model."""

    num_layers: int
    """The number of layers."""
    hidden_size: int
    """The width of the residual stream."""
    ffn_hidden_size: int
    """The width of the feed-forward."""
    num_attention_heads: int
    """The number of query heads."""
    num_query_groups: int
    """The number of key and value heads."""
    kv_channels: int
    """The dimension of a head."""
    gated: bool
    """Whether the feed-forward has a gate."""
    experts: int = 1
    """The number of feed-forwards of a layer."""
    experts_per_token: int = 1
    """The number of feed-forwards that a token uses."""


@dataclass(frozen=True, slots=True)
class Outline:
    """The content of an archive, without its tensors."""

    path: Path
    """The archive."""
    config: dict[str, object]
    """Its `model_config.yaml`."""
    sizes: dict[str, int] | None
    """The size in bytes of each file; None for a compressed archive that takes too long to unpack."""
    tensor_bytes: int | None = None
    """The size in bytes of the weights in a distributed checkpoint, whose files may hold an optimizer's state too."""

    @property
    def weight_bytes(self) -> int | None:
        """The total size in bytes of all weights; None if it takes too long to determine."""
        if self.sizes is None or self.tensor_bytes is not None:
            return self.tensor_bytes
        return sum(size for name, size in self.sizes.items() if name.endswith((WEIGHTS_NAME, ".distcp")))

    def weights_problem(self) -> Problem | None:
        """Return why the weights cannot be read, judging by the files' names, or None."""
        if self.sizes is None or any(name.endswith(WEIGHTS_NAME) for name in self.sizes):
            return None
        if distributed_folder(self.sizes.keys()) is not None:
            return distributed_problem(self.sizes.keys(), str(self.path))
        return Problem(str(self.path), f"holds no {WEIGHTS_NAME}", "copy or convert it again")


def read_outline(path: Path) -> Outline | None:
    """Return the outline of an archive; None if its configuration is not in the part that is read.

    The safetensors copy of an adapter counts as an archive. Raises UserError if the archive is unreadable, incomplete,
    not an archive, or has no configuration.
    """
    if is_copy(path):
        return Outline(path, read_copy_config(path), {WEIGHTS_NAME: path.stat().st_size})
    with damaged_as_user_error(path):
        compressed = path.is_file() and is_compressed(path)
    if compressed:
        return _compressed_outline(path)
    with Archive(path) as archive:
        sizes = {name: archive.size(name) for name in archive.names}
        return Outline(path, archive.config(), sizes, _distributed_bytes(archive))


def _distributed_bytes(archive: Archive) -> int | None:
    """Return the size in bytes of a distributed checkpoint's weights; None for other forms and without its metadata."""
    if distributed_folder(archive.names) is None or distributed_problem(archive.names, "") is not None:
        return None
    return sum(piece.length for tensor in read_metadata(archive).values() for piece in tensor.pieces)


def is_peft(config: Mapping[str, object]) -> bool:
    """Return whether a configuration is of an adapter archive of NeMo 1.21 or later."""
    section = config.get("peft")
    return isinstance(section, Mapping) and section.get("peft_scheme") not in (None, "none")


def is_adapter(config: Mapping[str, object]) -> bool:
    """Return whether a configuration is of an adapter, in this format or that of NeMo 1.20."""
    return "language_model_path" in config or is_peft(config)


def stack_sections(config: Section) -> dict[str, dict[str, object]]:
    """Return the keys of each stack of layers: a T5's encoder and decoder, or a GPT's single decoder."""
    if not is_t5(config):
        return {"decoder": dict(config)}
    return {name: {**config, **below(config, name)} for name in ("encoder", "decoder")}


def stack_sizes(section: Section) -> StackSizes:
    """Return the sizes in a stack's section, with NeMo's defaults; the section must have no `size_problems`."""
    heads, hidden = whole(section, "num_attention_heads") or 0, whole(section, "hidden_size") or 0
    multiquery = section.get("attention_type") == "multiquery"
    return StackSizes(
        num_layers=whole(section, "num_layers") or 0,
        hidden_size=hidden,
        ffn_hidden_size=whole(section, "ffn_hidden_size") or 4 * hidden,
        num_attention_heads=heads,
        num_query_groups=1 if multiquery else whole(section, "num_query_groups") or heads,
        kv_channels=whole(section, "kv_channels") or hidden // heads,
        gated=str(section.get("activation")).endswith("glu"),
        experts=whole(section, "num_moe_experts") or 1,
        experts_per_token=experts_per_token(section),
    )


def experts_per_token(section: Section) -> int:
    """Return the number of feed-forwards that a token uses, by default Megatron-core's."""
    has_experts = (whole(section, "num_moe_experts") or 1) > 1
    return whole(section, "moe_router_topk") or 2 if has_experts else 1


def _compressed_outline(path: Path) -> Outline | None:
    sizes: dict[str, int] = {}
    text: bytes | None = None
    complete = False
    with damaged_as_user_error(path), unpacking(path) as stream:
        reader = Reader(stream, str(path), stream.limit)
        for member in reader.members():
            sizes[member.name] = member.size
            if member.name == CONFIG_NAME:
                text = reader.take(min(member.size, MAX_YAML_BYTES + 1))
            if member.offset + member.size > MAX_UNPACKED_BYTES:
                break
        else:
            stream.read_to_end()  # the checksum is at the end
            complete = True
    check_names(list(sizes), str(path))
    if text is not None:
        return Outline(path, parse_config(text, path), sizes if complete else None)
    if complete:
        raise UserError(unknown_format_problem(sizes.keys(), str(path), CONFIG_NAME))
    return None


def dropout_rates(config: Section) -> tuple[float, float]:
    """Return the rates of hidden and attention dropout in a base's configuration.

    A T5 configuration has one section for each stack; the encoder's rates apply to both stacks.
    """
    section = {**config, **below(config, "encoder")}
    return number(section, "hidden_dropout") or 0.0, number(section, "attention_dropout") or 0.0
