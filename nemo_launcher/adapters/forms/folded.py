# SPDX-License-Identifier: Apache-2.0
"""A base as a Hugging Face folder with an adapter in its weights, which transformers alone then computes.

Weights are read from the base's mapped file, changed in fp32 and written one file after the other, so that only those
of one file are in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

from nemo_launcher.adapters.forms.card import write_card
from nemo_launcher.adapters.forms.changes import Changes, Target
from nemo_launcher.adapters.forms.methods import OpenedAdapter, open_adapter
from nemo_launcher.adapters.forms.scores import read_scores
from nemo_launcher.checkpoint.architectures.rope_keys import older_keys
from nemo_launcher.checkpoint.finite import is_finite
from nemo_launcher.checkpoint.norms import norm_weight
from nemo_launcher.data.tokenizer_export import write_tokenizer
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.families.hf_table import Entry
from nemo_launcher.files.new_folder import new_folder

_INSTEAD = "use --to adapterhub, or nemo-launcher generate and score, which add its layers to the base"
_PATTERN = "model{suffix}.safetensors"
_INDEX = "model.safetensors.index.json"
FILE_BYTES = 2 << 30
"""The largest file of weights, in bytes, unless one weight is larger."""


@dataclass(frozen=True, slots=True)
class _Planned:
    """One tensor of the folder."""

    entry: Entry
    """The module that it is a part of."""
    part: int
    """Its number among the modules of Hugging Face."""
    suffix: str
    """`weight` or `bias`."""
    shape: tuple[int, ...]
    """Its shape there."""


def export_folded(
    adapter: str | Path,
    base: str | Path,
    output: str | Path,
    dtype: torch.dtype | None = None,
    results: str | Path | None = None,
) -> OpenedAdapter:
    """Write a base with an adapter in its weights as a Hugging Face folder. dtype: of the weights; None: the base's.

    results: of an evaluation of the adapter, whose scores the card has (forms.scores). Raises UserError for an adapter
    of another base, for methods that add layers, for a base that no Hugging Face architecture computes, for values
    beyond the range of `dtype`, and for results that are not the adapter's.
    """
    scores = None if results is None else read_scores(results, adapter)
    opened = open_adapter(adapter, base, _INSTEAD)
    target = opened.target
    kind = dtype or target.model.weights.read(target.model.base.family.embedding).dtype
    with new_folder(output) as folder:
        _write_weights(folder, opened, kind, str(output))
        layout, configuration = target.form.layout, target.form.configuration
        settings = older_keys(layout.kind, configuration) | configuration | {"dtype": str(kind).removeprefix("torch.")}
        _write_json(folder / "config.json", settings)
        tokens = {key: value for key, value in settings.items() if key.endswith("token_id") and value is not None}
        _write_json(folder / "generation_config.json", {"do_sample": False, **tokens})
        left_out = write_tokenizer(Path(base), folder)
        kind_name = settings["dtype"]
        notes = (
            f"The adapter is folded into the weights, which are {kind_name}: transformers alone computes the result."
        )
        notes = notes if left_out is None else f"{notes} {_no_tokenizer(left_out)}"
        write_card(folder, opened, "hf", notes, scores)
    if left_out is not None:
        print(_no_tokenizer(left_out), flush=True)
    return opened


def _no_tokenizer(reason: str) -> str:
    return f"The folder has no tokenizer: {reason}. Copy the one of the base's source into it."


def _write_weights(folder: Path, opened: OpenedAdapter, dtype: torch.dtype, output: str) -> None:
    target = opened.target
    planned = dict(_planned(target))
    empty = {name: torch.empty(tensor.shape, dtype=dtype, device="meta") for name, tensor in planned.items()}
    plan = split_torch_state_dict_into_shards(empty, filename_pattern=_PATTERN, max_shard_size=FILE_BYTES)
    for number, (file, names) in enumerate(plan.filename_to_tensors.items(), 1):
        tensors = dict(_tensors(target, opened.changes, {name: planned[name] for name in names}, dtype, output))
        save_file(tensors, folder / file, metadata={"format": "pt"})
        print(f"{file}: {len(names)} tensors ({number} of {len(plan.filename_to_tensors)})", flush=True)
    if plan.is_sharded:
        _write_json(folder / _INDEX, {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename})


def _planned(target: Target) -> Iterator[tuple[str, _Planned]]:
    """Yield the tensors of the folder by name, in the order of the computation."""
    names = target.form.names(target.model)
    for entry in target.form.table.entries(target.model.stacks):
        for suffix in ("weight", "bias"):
            ours = f"{entry.ours}.{suffix}"
            if ours not in names:
                continue
            whole = target.model.weights.shape(target.form.source_of(ours, target.model.base))
            for part, rows in enumerate(entry.module.widths(entry.sizes, whole[0])):
                shape = (rows, *whole[1:])
                swapped = entry.module.transposed and len(shape) == 2
                name = target.form.layout.file_names.get(names[ours][part], names[ours][part])
                yield name, _Planned(entry, part, suffix, shape[::-1] if swapped else shape)


def _tensors(
    target: Target, changes: Changes, planned: Mapping[str, _Planned], dtype: torch.dtype, output: str
) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors of the folder; parts of one weight follow each other, so that it is read once."""
    read, parts = "", []
    for name, wanted in planned.items():
        ours = f"{wanted.entry.ours}.{wanted.suffix}"
        if ours != read:
            parts = wanted.entry.module.rows_of(_whole(target, ours), wanted.entry.sizes)
            read = ours
        tensor = parts[wanted.part]
        change = changes.get(name.rpartition(".")[0])
        if change is not None:
            tensor = change.in_weight(tensor.float()) if wanted.suffix == "weight" else change.in_bias(tensor.float())
        tensor = tensor.to(dtype)
        if not is_finite(tensor):
            what = f"{name} has values beyond the range of {str(dtype).removeprefix('torch.')}"
            raise UserError(Problem(f"--output {output}", what, "choose --dtype bfloat16 or float32"))
        swapped = wanted.entry.module.transposed and tensor.dim() == 2
        yield name, (tensor.t() if swapped else tensor).clone(memory_format=torch.contiguous_format)


def _whole(target: Target, ours: str) -> Tensor:
    """Return our weight for the folder: norms as transformers has them."""
    base = target.model.base
    source = target.form.source_of(ours, base)
    weight = target.model.weights.read(source)
    return weight if target.form.layout.zero_centered else norm_weight(weight, source, base.config)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
