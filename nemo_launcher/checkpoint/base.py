"""Loading a frozen base model with its tokenizer from a `.nemo` archive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_launcher.checkpoint import gpt_layouts
from nemo_launcher.checkpoint.archive import WEIGHTS_NAME, Archive
from nemo_launcher.checkpoint.tensors import read_tensors
from nemo_launcher.data.tokenizers import Tokenizer, load_tokenizer
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.models import parallel
from nemo_launcher.models.config import GPTShape
from nemo_launcher.models.gpt import FrozenGPT, build_gpt


@dataclass(slots=True)
class Base:
    """A frozen base model, ready to run on `device`."""

    model: FrozenGPT
    tokenizer: Tokenizer
    shape: GPTShape
    config: dict[str, Any]
    device: torch.device


def load_base(path: str | Path, *, dtype: torch.dtype = torch.float32) -> Base:
    """Load a base `.nemo` (NeMo's legacy or mcore layout, one file) at the given dtype.

    Raises UserError when the archive is unreadable, of another family, or its weights do not fit its configuration.
    """
    device = parallel.initialize()
    with Archive(path) as archive:
        config = archive.config()
        tokenizer = load_tokenizer(archive)
        stored = read_tensors(archive, WEIGHTS_NAME)
    weights = _rename(stored, str(path))
    embedding = weights.get("embedding.word_embeddings.weight")
    if embedding is None:
        raise UserError(Problem(str(path), "holds no word embeddings: it is not a GPT base checkpoint"))
    shape = GPTShape.from_config(config, vocab_size=embedding.size(0), source=str(path))
    if tokenizer.vocab_size > shape.vocab_size:
        what = f"the tokenizer has {tokenizer.vocab_size} tokens, the embedding {shape.vocab_size} rows"
        raise UserError(Problem(str(path), what, "the tokenizer belongs to another model"))
    model = build_gpt(shape, dtype=dtype)
    _assign(model, weights, dtype, str(path))
    return Base(model.to(device), tokenizer, shape, config, device)


def _rename(stored: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    weights, unknown = {}, []
    for name, value in stored.items():
        try:
            ours = gpt_layouts.from_stored_name(name)
        except KeyError:
            unknown.append(name)
            continue
        if ours is not None:
            weights[ours] = value
    if unknown:
        what = f"{len(unknown)} weights are not a GPT's: {', '.join(sorted(unknown)[:3])} ..."
        raise UserError(Problem(source, what, "name a GPT or Llama base checkpoint"))
    return weights


def _assign(model: FrozenGPT, weights: dict[str, Tensor], dtype: torch.dtype, source: str) -> None:
    own = dict(model.named_parameters())
    problems = [Problem(f"{source}: {name}", "is absent from the weights") for name in sorted(own.keys() - weights)]
    problems += [
        Problem(f"{source}: {name}", "has no place in the model its configuration describes")
        for name in sorted(weights.keys() - own)
    ]
    problems += [
        Problem(
            f"{source}: {name}", f"has shape {tuple(weights[name].shape)}, the configuration {tuple(own[name].shape)}"
        )
        for name in sorted(own.keys() & weights)
        if own[name].shape != weights[name].shape
    ]
    if problems:
        raise UserError(problems[:10])
    # assign: the model takes over the loaded tensors, so the weights exist once in memory
    model.load_state_dict({name: value.to(dtype) for name, value in weights.items()}, strict=False, assign=True)
    model.requires_grad_(False)
