# SPDX-License-Identifier: Apache-2.0
"""conversion_hf2nemo: convert a Hugging Face folder or GGUF file into a `.nemo` base checkpoint with its tokenizer."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from nemo_launcher.checkpoint.archive import WEIGHTS_NAME
from nemo_launcher.checkpoint.archive_writer import Writer, write_archive
from nemo_launcher.checkpoint.hf_architectures import known_keys, settings_problem
from nemo_launcher.checkpoint.hub_model import model_of, title_of
from nemo_launcher.checkpoint.language_model import LANGUAGE_MODEL_OF
from nemo_launcher.checkpoint.sources import KEY, check_source
from nemo_launcher.checkpoint.stored_tensor import some_of
from nemo_launcher.checkpoint.torch_zip_writer import write_tensors
from nemo_launcher.conversion.licence import licence_of
from nemo_launcher.conversion.progress import told
from nemo_launcher.conversion.source import Source, SourceTensors, open_source
from nemo_launcher.conversion.source_tokenizer import SourceTokenizer, read_tokenizer
from nemo_launcher.conversion.target import PATH, check_origin, check_target, is_made
from nemo_launcher.conversion.verify import compare
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.families.family import HuggingFaceModel
from nemo_launcher.families.registry import hugging_face_model
from nemo_launcher.files.foreign import reading_each
from nemo_launcher.runtime.precision import dtype_of, stored_precision
from nemo_launcher.runtime.quiet import quiet_libraries

VERSION = 2
"""Version of the converter; raised when its output changes, so that existing base models are converted again."""
VERIFIED = "token ids, every layer and the logits match the source"


def convert(source: Path, target: Path, precision: str | int | None = None, *, language_model: bool = False) -> bool:
    """Convert `source` (a Hugging Face folder or a .gguf file) to the `.nemo` file `target`.

    precision: that of the stored weights; None for that of the source (GGUF: 32, which is exact). language_model:
    whether `source` is a multi-modal model, of which the language model is converted (checkpoint.language_model). The
    written file is compared with the source before it is renamed to `target` (conversion.verify). Returns False when
    `target` was already made from the same source and is unchanged. Raises UserError when the source is absent,
    incomplete, damaged or unsupported, when `target` is a foreign file, or when the result differs from the source.
    """
    check_source(source, language_model=language_model)
    check_target(source, target)
    stamp = {
        "file": title_of(source),
        "sha256": _digest(source),
        "precision": None if precision is None else str(precision),
        "converter": VERSION,
    }
    check_origin(source, target, str(stamp["sha256"]))
    if is_made(target, stamp):
        print(f"{target} was already made from {source}: nothing to do", flush=True)
        return False
    quiet_libraries()
    print(f"reading {source}", flush=True)
    opened = open_source(source, language_model=language_model)
    family = hugging_face_model(opened.kind)
    check_settings(opened, source)
    tokenizer = read_tokenizer(opened.origin, opened.config)
    quiet_libraries()
    dtype = opened.tensors.dtype if precision is None else dtype_of(precision, "model.precision")
    rows = _added_rows(tokenizer, opened.config.vocab_size, source)
    print(f"writing {target} ({opened.tensors.num_values / 1e6:.1f}M weights, {dtype})", flush=True)
    stored = _stored(opened, family, dtype, rows)
    hub = model_of(source.absolute())
    config = family.nemo_config(opened.config, opened.tensors) | {
        "micro_batch_size": 1,
        "global_batch_size": 1,
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "tokenizer": tokenizer.section | family.tokenizer_section(tokenizer.vocab),
        "precision": stored_precision(dtype),
        "target": family.TARGET,
        "converted_from": stamp
        | {
            PATH: os.path.abspath(source),
            "verified": VERIFIED,
            "licence": licence_of(opened.origin),  # for model cards (adapters.forms.card)
            "configuration": known_keys(opened.origin.config),  # for the way back (families.gpt.hf_layouts)
        }
        | ({} if hub is None else {"hub": str(hub)})
        | ({} if opened.whole is None else {LANGUAGE_MODEL_OF: opened.whole.name}),
    }
    _tell_limit(config, opened)
    _write(target, config, tokenizer, stored, opened, dtype)
    return True


def _tell_limit(config: Mapping[str, object], source: Source) -> None:
    """Say if a base's sequences are shorter than those of its source (checkpoint.architectures.llama.limited)."""
    own, length = config.get("max_position_embeddings"), getattr(source.config, "max_position_embeddings", None)
    if isinstance(own, int) and isinstance(length, int) and own < length:
        print(f"sequences are limited to {own} tokens (instead of {length}): docs/models.md has the reason", flush=True)


def check_settings(opened: Source, source: Path) -> None:
    """Raise UserError for settings, including transformers' defaults, that the conversion does not support."""
    problem = settings_problem(opened.kind, opened.config.to_dict(), str(source))
    if problem is not None:
        raise UserError(problem)


def _write(
    target: Path,
    config: Mapping[str, object],
    tokenizer: SourceTokenizer,
    stored: Iterator[tuple[str, Tensor]],
    source: Source,
    dtype: torch.dtype,
) -> None:
    """Write the base model and compare it with its source; it is renamed to `target` only if both succeed."""
    size = source.tensors.num_values * dtype.itemsize
    _check_room(target, size)
    members: dict[str, Writer | bytes] = dict(tokenizer.files)
    members[WEIGHTS_NAME] = lambda stream: write_tensors(stream, told(stored, size))

    def check(path: Path) -> None:
        print(f"comparing it with {source.path}", flush=True)
        try:
            found = compare(path, target, source, tokenizer, dtype)
        except UserError as error:  # show the target's name instead of the temporary one
            problems = [replace(p, where=p.where.replace(str(path), str(target))) for p in error.problems]
            raise UserError(problems) from error
        print(
            f"{VERIFIED} (largest relative difference: layers {found.layers:.1e}, logits {found.logits:.1e})",
            flush=True,
        )

    write_archive(target, config, members, check)


def _stored(source: Source, family: HuggingFaceModel, dtype: torch.dtype, rows: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights under their names in archives. rows: the number of rows that embeddings get in addition."""
    for name, weight in _weights(source, family, dtype):
        added = _with_rows(weight, rows) if rows and name.endswith(_EMBEDDINGS) else weight
        yield from family.to_stored({name: added}, source.config).items()


def _weights(source: Source, family: HuggingFaceModel, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights under our names, in `dtype`. Raises UserError for unused tensors and values beyond `dtype`."""
    theirs: SourceTensors = source.tensors
    converted = family.convert_weights(theirs, source.config)
    for name, weight in reading_each(converted, source.path, "correct config.json, or copy it again"):
        result = weight.to(dtype).contiguous()
        if dtype is not theirs.dtype and not torch.isfinite(result).all():
            what = f"{name} has values beyond the range of {dtype}"
            raise UserError(Problem("model.precision", what, "choose model.precision=bf16 or 32"))
        yield name, result
    unused = theirs.keys() - theirs.read_names
    if unused:
        what = f"{len(unused)} tensors would be lost: {some_of(unused)}"
        raise UserError(Problem(str(source.path), what, "report it with the model's name"))


_EMBEDDINGS = ("word_embeddings.weight", "output_layer.weight", "output_layer.bias")


def _added_rows(tokenizer: SourceTokenizer, rows: int, source: Path) -> int:
    """Return how many rows the embedding needs for added tokens beyond its end.

    Raises UserError when tokens of the vocabulary itself have no row, because the tokenizer then belongs to another
    model.
    """
    beyond = sorted(token for token, number in tokenizer.vocab.items() if number >= rows)
    if not beyond:
        return 0
    missing = [token for token in beyond if token not in tokenizer.added]
    if missing:
        what = f"the tokenizer has {len(tokenizer.vocab)} tokens, but the embedding has {rows} rows"
        raise UserError(Problem(str(source), what, "use the model's own tokenizer"))
    count = max(tokenizer.vocab.values()) + 1 - rows
    print(
        f"{count} rows are added to the embedding for tokens of the tokenizer that the model lacks: "
        f"{some_of(beyond)}; each is the mean of all rows",
        flush=True,
    )
    return count


def _with_rows(weight: Tensor, count: int) -> Tensor:
    """Return an embedding with `count` more rows, each the mean of all.

    A token with a mean row is never the most likely one, so answers do not change.
    """
    mean = weight.float().mean(0, keepdim=True).to(weight.dtype)
    return torch.cat((weight, mean.expand(count, *weight.shape[1:])))


def _check_room(target: Path, size: int) -> None:
    """Raise UserError when the disk lacks room for the weights, which are written to a file and then to the archive."""
    folder = next(parent for parent in target.absolute().parents if parent.exists())
    wanted, free = 2 * size, shutil.disk_usage(folder).free
    if wanted > free:
        what = f"the conversion needs {wanted / 2**20:,.0f} MiB, {folder} has {free / 2**20:,.0f} MiB free"
        raise UserError(
            Problem(f"{KEY.replace('hf_model_path', 'nemo_path')}", what, "free some space, or choose another disk")
        )


def _digest(source: Path) -> str:
    """Return the SHA-256 of the source's files, concatenated in the order of their names."""
    files = [source] if source.is_file() else sorted(path for path in source.iterdir() if path.is_file())
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
