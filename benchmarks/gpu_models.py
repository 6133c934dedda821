# SPDX-License-Identifier: Apache-2.0
"""Random models and samples for benchmarks/gpu.py, and how it times them."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.training_ours import ADAPTER_TUNING
from nemo_launcher.adapters.injection import AdapterSet
from nemo_launcher.data.batching import Collate, GlobalBatch
from nemo_launcher.data.layout import Layout
from nemo_launcher.families.frozen_model import FrozenModel
from nemo_launcher.families.gpt import packing as gpt_packing
from nemo_launcher.families.gpt.model import build_gpt
from nemo_launcher.families.gpt.samples import GPTSample
from nemo_launcher.families.gpt.shape import GPTShape
from nemo_launcher.families.t5 import packing as t5_packing
from nemo_launcher.families.t5.model import build_t5
from nemo_launcher.families.t5.samples import T5Sample
from nemo_launcher.families.t5.shape import T5Shape
from nemo_launcher.megatron.sizes import ONE_RANK
from nemo_launcher.training.step import forward_backward

Row = dict[str, Any]
METHODS = tuple(ADAPTER_TUNING)
_VOCABULARY = 4096
_DRAWN_ALIKE = 10_000_000
_LLAMA = {"activation": "fast-swiglu", "normalization": "rmsnorm", "position_embedding_type": "rope", "bias": False}
_GPT3 = {
    "activation": "gelu",
    "normalization": "layernorm1p",
    "position_embedding_type": "learned_absolute",
    "bias": True,
}
_T5 = {
    "activation": "geglu",
    "normalization": "rmsnorm",
    "position_embedding_type": "relative",
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "bias": False,
    "normalize_attention_scores": False,
    "kv_channels": 64,
    "max_position_embeddings": 512,
    "encoder_seq_length": 512,
}


@dataclass(frozen=True, slots=True)
class Bench:
    """Where and at which sizes the sections measure."""

    device: torch.device
    """The device that is measured."""
    small: bool
    """Whether sizes are tiny, to test the benchmark itself."""
    folder: Path
    """A folder for files of the sections."""

    @property
    def is_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of models whose speed is measured: bf16, which many CPUs lack, on a GPU."""
        return torch.bfloat16 if self.is_gpu else torch.float32

    def wait(self) -> None:
        """Wait until the GPU has finished."""
        if self.is_gpu:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object], *, warm: int = 2, rounds: int = 5) -> float:
        """Return the median seconds of a call, by the device's clock."""
        for _ in range(warm):
            work()
        self.wait()
        return statistics.median(self._once(work) for _ in range(rounds))

    def first_seconds(self, work: Callable[[], object]) -> float:
        """Return the seconds of a first call, by the host's clock."""
        self.wait()
        start = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - start

    def _once(self, work: Callable[[], object]) -> float:
        if not self.is_gpu:
            return self.first_seconds(work)
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record()
        work()
        after.record()
        after.synchronize()
        return float(before.elapsed_time(after)) / 1e3

    def forget_peak(self) -> None:
        """Start a new measurement of the peak memory."""
        if self.is_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> Row:
        """Return the peak memory since forget_peak: nothing on a CPU."""
        return {"peak_gib": torch.cuda.max_memory_allocated() / 2**30} if self.is_gpu else {}


def gpt_shape(
    layers: int, hidden: int, ffn: int, heads: int, groups: int, vocabulary: int = _VOCABULARY, *, gpt3: bool = False
) -> GPTShape:
    """Return the shape of a Llama, or of a GPT in NeMo's original form."""
    sizes = {
        "num_layers": layers,
        "hidden_size": hidden,
        "ffn_hidden_size": ffn,
        "num_attention_heads": heads,
        "num_query_groups": groups,
        "encoder_seq_length": 8192,
        "max_position_embeddings": 8192,
        "layernorm_epsilon": 1e-5,
    }
    return GPTShape.from_config(sizes | (_GPT3 if gpt3 else _LLAMA), vocab_size=vocabulary, source="benchmark")


def smollm(bench: Bench) -> GPTShape:
    """Return the shape of SmolLM2-135M."""
    return gpt_shape(2, 64, 128, 4, 2) if bench.small else gpt_shape(30, 576, 1536, 9, 3, 49152)


def large_shapes(bench: Bench) -> dict[str, GPTShape]:
    """Return the shapes of larger models."""
    if bench.small:
        return {"Llama, 1.7B": gpt_shape(2, 64, 128, 4, 4)}
    return {
        "Llama, 1.7B": gpt_shape(24, 2048, 8192, 32, 32, 49152),
        "Llama-3-8B": gpt_shape(32, 4096, 14336, 32, 8, 128256),
    }


def t5_shape(layers: int) -> T5Shape:
    """Return the shape of a small T5."""
    sizes = {"num_layers": layers, "hidden_size": 512, "ffn_hidden_size": 1024, "num_attention_heads": 8}
    return T5Shape.from_config(sizes | _T5, vocab_size=_VOCABULARY, source="benchmark")


@dataclass(slots=True)
class Trained:
    """A random frozen model with random adapters."""

    shape: GPTShape | T5Shape
    """The model's shape."""
    method: str
    """A key of benchmarks.training_ours.ADAPTER_TUNING."""
    dtype: torch.dtype
    """The dtype of the frozen weights."""
    device: torch.device
    """Their device."""
    model: FrozenModel = field(init=False)
    """The model."""
    adapters: AdapterSet = field(init=False)
    """The adapters, in train mode."""

    def __post_init__(self) -> None:
        self.model = random_model(self.shape, self.dtype, self.device)
        block = ADAPTER_TUNING[self.method]
        config = {"seed": 1} | ({"adapter_tuning": block} if block else {})
        self.adapters = AdapterSet(self.model, self.shape, config)
        self.adapters.train()
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():  # adapters that start at zero would have no gradients in part
            for parameter in self.adapters.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator).to(parameter.device))

    def gradients(self, batch: GlobalBatch) -> tuple[float, torch.Tensor]:
        """Return the loss and all gradients in one fp64 tensor on the CPU."""
        for parameter in self.adapters.parameters():
            parameter.grad = None
        loss = float(forward_backward(self.model, batch, backward=True))
        found = [p.grad.flatten().double().cpu() for p in self.adapters.parameters() if p.grad is not None]
        return loss, torch.cat(found)

    def step(self, batch: GlobalBatch) -> Callable[[], object]:
        """Return a function that trains on the batch once."""
        optimizer = torch.optim.AdamW(self.adapters.parameters(), lr=1e-4, fused=True)

        def run() -> None:
            optimizer.zero_grad()
            forward_backward(self.model, batch, backward=True)
            self.adapters.clip_gradients(1.0)
            optimizer.step()

        return run


def random_model(shape: GPTShape | T5Shape, dtype: torch.dtype, device: torch.device, seed: int = 0) -> FrozenModel:
    """Return a model with random weights.

    Those of matrices below 10 million elements are drawn on the CPU in fp32, so that they are alike on every device.
    """
    build: Callable[..., FrozenModel] = build_t5 if isinstance(shape, T5Shape) else build_gpt
    with device:
        model = build(shape, dtype=dtype, sizes=ONE_RANK).to(device).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            drawn = torch.full_like(parameter, 1.0 if "norm" in name and "weight" in name else 0.0)
        elif parameter.numel() < _DRAWN_ALIKE:
            drawn = 0.02 * torch.randn(parameter.shape, generator=generator)
        else:
            drawn = 0.02 * torch.randn_like(parameter)
        parameter.data = drawn.to(device, dtype)
    return model


def questions(contexts: int, *, per_context: int = 5, length: int = 150, seed: int = 0) -> list[GPTSample]:
    """Return samples of random tokens, with several questions on each context."""
    generator = random.Random(seed)
    samples = []
    for _ in range(contexts):
        context = _tokens(generator, length + generator.randint(-40, 40))
        for _ in range(per_context):
            asked = context + _tokens(generator, generator.randint(17, 33))
            samples.append(GPTSample(asked + _tokens(generator, generator.randint(6, 10)), len(asked), {}, "random"))
    return samples


def unrelated(count: int, length: int, answer: int, seed: int = 0) -> list[GPTSample]:
    """Return samples of `length` input tokens that share nothing, with `answer` tokens in the loss."""
    generator = random.Random(seed)
    return [GPTSample(_tokens(generator, length + 1), length + 1 - answer, {}, "random") for _ in range(count)]


def t5_samples(count: int, seed: int = 0) -> list[T5Sample]:
    """Return samples of random tokens for a T5."""
    generator = random.Random(seed)
    return [
        T5Sample(
            _tokens(generator, generator.randint(60, 200)), _tokens(generator, generator.randint(3, 12)), {}, "random"
        )
        for _ in range(count)
    ]


def _tokens(generator: random.Random, count: int) -> list[int]:
    return [generator.randrange(3, 4000) for _ in range(count)]


def batch_of(samples: list[Any], device: torch.device) -> GlobalBatch:
    """Return one global batch, as a job on a GPU computes it."""
    is_t5 = isinstance(samples[0], T5Sample)
    pack = t5_packing.pack if is_t5 else gpt_packing.pack
    layout = Layout.one_after_the_other(len(samples))
    return Collate(layout, not is_t5, pack=pack, keep_groups=True)(samples).to(device)


def attempt(work: Callable[[], Row], **case: Any) -> Iterator[Row]:
    """Yield the case with what `work` returns, or with its error."""
    try:
        yield case | work()
    except Exception as error:
        yield case | {"error": f"{type(error).__name__}: {error}"[:300]}
