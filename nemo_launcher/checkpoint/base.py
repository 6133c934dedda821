"""Loading a frozen base model with its tokenizer from a `.nemo` archive."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nemo_launcher.checkpoint.archive import WEIGHTS_NAME, Archive
from nemo_launcher.checkpoint.gates import join_gates
from nemo_launcher.data.tokenizers import Tokenizer, load_tokenizer
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.families import Family, check_family, family_of_checkpoint
from nemo_launcher.models import parallel


@dataclass(slots=True)
class Base:
    """A frozen base model, ready to run on `device`. model, shape: of the family (families.Family)."""

    model: Any
    tokenizer: Tokenizer
    shape: Any
    config: dict[str, Any]
    device: torch.device
    family: Family


def load_base(path: str | Path, *, dtype: torch.dtype = torch.float32, family: str | None = None) -> Base:
    """Load a base `.nemo` (NeMo's legacy or mcore layout, one file) at the given dtype.

    family: the one that is expected, a key of families.FAMILIES; None: any. Raises UserError when the archive is
    unreadable, of another family, or its weights do not fit its configuration.
    """
    device = parallel.initialize()
    source = str(path)
    with Archive(path) as archive:
        config = archive.config()
        tokenizer = load_tokenizer(archive)
        stored = read_weights(archive, WEIGHTS_NAME)
    found = family_of_checkpoint(config, stored, source)
    check_family(found, family, source)
    weights = _rename(found, stored, config, source)
    shape = found.read_shape(config, vocab_size=weights[found.embedding].size(0), source=source)
    if tokenizer.vocab_size > shape.vocab_size:
        what = f"the tokenizer has {tokenizer.vocab_size} tokens, the embedding {shape.vocab_size} rows"
        raise UserError(Problem(source, what, "the tokenizer belongs to another model"))
    model = found.build(shape, dtype=dtype)
    _assign(model, weights, dtype, source)
    return Base(model.to(device), tokenizer, shape, config, device, found)


def read_weights(archive: Archive, name: str) -> dict[str, Any]:
    """Read one `torch.save` member; only tensors and plain containers are accepted, nothing is executed."""
    try:
        with archive.open(name) as stream:
            return torch.load(stream, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(Problem(f"{archive.path}: {name}", f"cannot be read: {reason}")) from error


def _rename(family: Family, stored: Mapping[str, Any], config: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    weights, unknown = family.rename(stored, config)
    if unknown:
        what = f"{len(unknown)} weights are not a {family.title}'s: {', '.join(sorted(unknown)[:3])} ..."
        raise UserError(Problem(source, what, "name a base checkpoint that NeMo or conversion_hf2nemo wrote"))
    if family.embedding not in weights:
        raise UserError(Problem(source, f"holds no word embeddings: it is not a {family.title} base checkpoint"))
    return join_gates(weights)


def _assign(model: nn.Module, weights: dict[str, Tensor], dtype: torch.dtype, source: str) -> None:
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
