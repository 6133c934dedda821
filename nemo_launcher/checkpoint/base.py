"""Loading a frozen base model with its tokenizer from a `.nemo` archive."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_launcher.checkpoint import gpt_layouts
from nemo_launcher.checkpoint.archive import Archive
from nemo_launcher.checkpoint.sharding import StoredWeights
from nemo_launcher.data.tokenizers import Tokenizer, load_tokenizer
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.models import parallel
from nemo_launcher.models.config import ACTIVATIONS, GPTShape
from nemo_launcher.models.gpt import FrozenGPT, build_gpt


@dataclass(slots=True)
class Base:
    """A frozen base model, ready to run on `device`."""

    model: FrozenGPT
    tokenizer: Tokenizer
    shape: GPTShape
    config: dict[str, Any]
    device: torch.device


def load_base(
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    tensor_model_parallel_size: int = 1,
    pipeline_model_parallel_size: int = 1,
) -> Base:
    """Load this rank's part of a base `.nemo`, whatever sizes and layout (NeMo's legacy or mcore) it was written in.

    Raises UserError when the archive is unreadable, of another family, or its weights do not fit its configuration.
    """
    device = parallel.initialize(
        tensor_model_parallel_size=tensor_model_parallel_size,
        pipeline_model_parallel_size=pipeline_model_parallel_size,
    )
    with Archive(path) as archive:
        config = archive.config()
        tokenizer = load_tokenizer(archive)
        gated = ACTIVATIONS.get(str(config.get("activation")), (None, False))[1]
        weights = StoredWeights(archive, gpt_layouts.from_stored_name, gated=gated)
        if _EMBEDDING not in weights.names:
            raise UserError(Problem(str(path), "holds no word embeddings: it is not a GPT base checkpoint"))
        rows = weights.rows(_EMBEDDING)
        rows += -rows % tensor_model_parallel_size
        shape = GPTShape.from_config(config, vocab_size=rows, source=str(path))
        if tokenizer.vocab_size > shape.vocab_size:
            what = f"the tokenizer has {tokenizer.vocab_size} tokens, the embedding {shape.vocab_size} rows"
            raise UserError(Problem(str(path), what, "the tokenizer belongs to another model"))
        model = build_gpt(
            shape,
            dtype=dtype,
            tensor_model_parallel_size=tensor_model_parallel_size,
            pipeline_model_parallel_size=pipeline_model_parallel_size,
        )
        _assign(model, weights, shape, dtype, str(path))
    return Base(model.to(device), tokenizer, shape, config, device)


_EMBEDDING = "embedding.word_embeddings.weight"
_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.*)")


def _assign(model: FrozenGPT, weights: StoredWeights, shape: GPTShape, dtype: torch.dtype, source: str) -> None:
    """Give the model its weights; it takes over what is read, so that they exist once in memory."""
    own = {name: (_whole_name(name, model, shape), parameter) for name, parameter in model.named_parameters()}
    problems = _superfluous(weights, {whole for whole, _ in own.values()}, shape, source)
    rank, ranks = parallel.tensor_rank(), parallel.tensor_size()
    state: dict[str, Tensor] = {}
    for name, (whole, parameter) in own.items():
        if whole not in weights.names:
            problems.append(Problem(f"{source}: {whole}", "is absent from the weights"))
            continue
        weight = weights.read(whole, rank, ranks)
        if weight.shape != parameter.shape:
            what = f"has shape {tuple(weight.shape)}, the configuration {tuple(parameter.shape)}"
            problems.append(Problem(f"{source}: {whole}", what))
        state[name] = weight.to(dtype)
    if problems:
        raise UserError(problems[:10])
    model.load_state_dict(state, strict=False, assign=True)
    model.requires_grad_(False)


def _whole_name(name: str, model: FrozenGPT, shape: GPTShape) -> str:
    """Return a parameter's name in the whole model: layers counted from its first, the tied head its embedding."""
    if name == "output_layer.weight" and shape.share_embeddings_and_output_weights:
        return _EMBEDDING
    match = _LAYER.fullmatch(name)
    if match is None:
        return name
    layer = model.decoder.layers[int(match[1])]
    return f"decoder.layers.{layer.layer_number - 1}.{match[2]}"


def _superfluous(weights: StoredWeights, own: set[str], shape: GPTShape, source: str) -> list[Problem]:
    """Stored weights that the configuration's model would not have; `own`: the whole names of this rank's."""
    in_layer = {match[2] for match in map(_LAYER.fullmatch, own) if match}
    # Other pipeline stages hold these; the last stage of a tied model stores a copy of the embedding as its head.
    outside = own | {name for name in weights.names if name.startswith(("embedding.", "decoder.final_layernorm."))}
    outside |= {"output_layer.weight"}
    found = []
    for name in sorted(weights.names):
        match = _LAYER.fullmatch(name)
        known = int(match[1]) < shape.num_layers and match[2] in in_layer if match else name in outside
        if not known:
            found.append(Problem(f"{source}: {name}", "has no place in the model its configuration describes"))
    return found
