# SPDX-License-Identifier: Apache-2.0
"""Hashes of everything that determines results, so that kept ones are only reused where they are still right."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nemo_launcher import __version__
from nemo_launcher.data.samples import Sample
from nemo_launcher.evaluation.sampling import Sampling
from nemo_launcher.megatron import parallel
from nemo_launcher.megatron.fused import is_fused

if TYPE_CHECKING:
    from nemo_launcher.families.base import Base

Adapter = Mapping[str, Mapping[str, Tensor]]
"""The tensors of an adapter by module key and name; {} for none."""


def answers_key(base: Base, adapter: Adapter, samples: Sequence[Sample], sampling: Sampling) -> str:
    """Return a hash of everything that determines generated answers: model, prompts and sampling settings."""
    prompts = [[sample.input_ids, getattr(sample, "decoder_ids", None)] for sample in samples]
    return _key(base, adapter, dataclasses.asdict(sampling), prompts)


def scores_key(base: Base, adapter: Adapter, samples: Sequence[Sample], batch_size: int) -> str:
    """Return a hash of everything that determines the scores of answers: model, samples and how they are batched.

    Unlike generated tokens, scores have digits that depend on the other samples of a batch.
    """
    settings = {"batch_size": batch_size, "tensor_parallel": parallel.tensor_size()}
    return _key(base, adapter, settings, [_tokens(sample) for sample in samples])


def _key(base: Base, adapter: Adapter, settings: Mapping[str, object], samples: Sequence[object]) -> str:
    digest = hashlib.sha256()
    of_model = [__version__, base.fingerprint, base.checksum, str(base.dtype), settings]
    if torch.backends.cuda.matmul.allow_tf32:
        of_model.append("tf32")
    if is_fused(base.model):
        of_model.append("fused")
    digest.update(json.dumps(of_model, sort_keys=True).encode())
    tensors = ((f"{key} {name}", adapter[key][name]) for key in sorted(adapter) for name in sorted(adapter[key]))
    for name, tensor in tensors:
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    for sample in samples:
        digest.update(json.dumps(sample).encode())
    return digest.hexdigest()


def _tokens(sample: Sample) -> list[object]:
    """Return all of a sample but the record that it was made from."""
    assert dataclasses.is_dataclass(sample)
    names = [field.name for field in dataclasses.fields(sample) if field.name not in ("record", "source")]
    return [getattr(sample, name) for name in names]
