# SPDX-License-Identifier: Apache-2.0
"""Memory against the estimate at launch, and whether rows that should fit do; a section of benchmarks/gpu.py."""

from __future__ import annotations

import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_models import Bench, Row, Trained, attempt, batch_of, large_shapes, smollm, unrelated
from nemo_launcher.adapters.settings import trainable_parameters
from nemo_launcher.checkpoint.outline import StackSizes
from nemo_launcher.data.batching import GlobalBatch
from nemo_launcher.data.layout import FULL_ROW
from nemo_launcher.families.gpt.family import GPT
from nemo_launcher.families.gpt.shape import GPTShape
from nemo_launcher.launcher.activations import Device
from nemo_launcher.launcher.memory import Base, Parameters, Rows, activation_bytes, peak_bytes
from nemo_launcher.megatron.attention import set_attention_backend
from nemo_launcher.megatron.frozen_layer import recompute_layers
from nemo_launcher.training.row_memory import fitting_tokens

GIB = 2**30


def memory(bench: Bench) -> Iterator[Row]:
    """Yield the peak of a step beside the estimate; on a CPU, what is kept for the backward pass.

    On a GPU, also the tokens that training.row_memory measures to fit, and the peak of a row of as many.
    """
    name, large = next(iter(large_shapes(bench).items()))
    for model, shape in {"SmolLM2-135M": smollm(bench), name: large}.items():
        for method in ("ia3", "adapter", "lora"):
            for recomputes in (False, True):
                yield from attempt(
                    lambda shape=shape, method=method, recomputes=recomputes: _compared(
                        bench, shape, method, recomputes=recomputes
                    ),
                    model=model,
                    method=method,
                    recomputes=recomputes,
                )
    if bench.is_gpu:
        yield from attempt(lambda: _fitting(bench, large), model=name, row="as long as fits")


def _compared(bench: Bench, shape: GPTShape, method: str, *, recomputes: bool) -> Row:
    trained, tokens, answer = _trained(bench, shape, method), 256 if bench.small else 8192, 20
    if recomputes:
        recompute_layers(trained.model.decoder.layers, "full", "uniform", None)  # type: ignore[union-attr]
    batch = batch_of(unrelated(tokens // 128, 128, answer), bench.device)
    rows = Rows({"decoder": float(batch.computed_tokens)}, float(batch.answer_tokens), 128.0)
    settings, base = trained.adapters.settings, _base(shape, bench.dtype.itemsize)
    device = Device(is_gpu=True, width=bench.dtype.itemsize, recomputes=recomputes)
    if not bench.is_gpu:
        found, said = _saved(trained, batch), activation_bytes(base, settings, rows, device)
        return {"kept_mib": found / 2**20, "estimated_mib": said / 2**20}
    step = trained.step(batch)
    step()
    bench.forget_peak()
    step()
    said = peak_bytes(base, settings, trainable_parameters(settings, base.stacks), rows, device)
    return bench.peak() | {"estimated_gib": said / GIB}


def _fitting(bench: Bench, shape: GPTShape) -> Row:
    trained = _trained(bench, shape, "adapter")
    family: Any = GPT
    base: Any = SimpleNamespace(
        model=trained.model, shape=shape, device=bench.device, family=family, tokenizer=SimpleNamespace(vocab_size=4000)
    )
    fitting = fitting_tokens(base)
    assert fitting is not None, "attention keeps masks here, or the peaks do not grow with the tokens"
    length = random.Random(0).randint(150, 250)
    batch = batch_of(unrelated(min(fitting, FULL_ROW) // length, length, 20), bench.device)
    bench.forget_peak()
    trained.step(batch)()
    total = torch.cuda.mem_get_info()[1] / GIB
    return {"fitting_tokens": fitting, "computed_tokens": batch.computed_tokens, "gpu_gib": total} | bench.peak()


def _trained(bench: Bench, shape: GPTShape, method: str) -> Trained:
    trained = Trained(shape, method, bench.dtype, bench.device)
    set_attention_backend(trained.model, "auto")
    return trained


def _base(shape: GPTShape, width: int) -> Base:
    sizes = StackSizes(
        shape.num_layers,
        shape.hidden_size,
        shape.ffn_hidden_size,
        shape.num_attention_heads,
        shape.num_query_groups,
        shape.kv_channels,
        True,
    )
    heads, keys = (count * shape.kv_channels for count in (shape.num_attention_heads, shape.num_query_groups))
    layer = shape.hidden_size * (2 * heads + 2 * keys + 3 * shape.ffn_hidden_size + 2)
    tables = shape.vocab_size * shape.hidden_size * (1 if shape.share_embeddings_and_output_weights else 2)
    parameters = Parameters(shape.num_layers * layer, tables, shape.vocab_size, (shape.num_layers * layer) * width)
    return Base({"decoder": sizes}, parameters, is_rotary=True, relative_biases=0)


def _saved(trained: Trained, batch: GlobalBatch) -> int:
    """Return the bytes of the tensors that the forward pass keeps, without the weights."""
    frozen = {parameter.untyped_storage().data_ptr() for parameter in trained.model.parameters()}
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        if (key := tensor.untyped_storage().data_ptr()) not in frozen:
            kept[key] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        trained.gradients(batch)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
