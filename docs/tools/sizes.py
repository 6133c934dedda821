# SPDX-License-Identifier: Apache-2.0
"""Writer of the tables in docs/sizes.md, with the estimate that the launcher prints before a training:
`make docs-reference`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nemo_launcher.adapters.registry import settings_of
from nemo_launcher.adapters.settings import Settings, trainable_parameters
from nemo_launcher.checkpoint.outline import Outline
from nemo_launcher.launcher.activations import Device
from nemo_launcher.launcher.base_sizes import base_of, stacks_of
from nemo_launcher.launcher.memory import Base, Rows, peak_bytes

PAGE = Path(__file__).resolve().parents[1] / "sizes.md"
GIB = 2**30
GPU_TOKENS, CPU_TOKENS, ANSWER_SHARE = 8 * 1024, 2 * 512, 1 / 16
LLAMA = {
    "activation": "fast-swiglu",
    "bias": False,
    "normalization": "rmsnorm",
    "position_embedding_type": "rope",
    "precision": "bf16",
}


@dataclass(frozen=True)
class Model:
    """A base model."""

    name: str
    """Its usual name."""
    parameters: int
    """Its parameters, as its publisher counts them."""
    config: Mapping[str, object]
    """Its sizes, as in `model_config.yaml`."""
    gpus: tuple[int, ...]
    """The numbers of GPUs that are shown."""

    def base(self) -> Base:
        """Return what the launcher reads from the model's archive, stored in bf16."""
        outline = Outline(Path("base.nemo"), {**LLAMA, **self.config}, {"model_weights.ckpt": 2 * self.parameters})
        stacks = stacks_of(outline)
        base = base_of(outline, stacks) if stacks else None
        assert base is not None
        return base


def _config(layers: int, hidden: int, feed_forward: int, heads: int, groups: int, *, tied: bool) -> dict[str, object]:
    return {
        "num_layers": layers,
        "hidden_size": hidden,
        "ffn_hidden_size": feed_forward,
        "num_attention_heads": heads,
        "num_query_groups": groups,
        "share_embeddings_and_output_weights": tied,
    }


MODELS = (
    Model("SmolLM2-135M", 134_515_008, _config(30, 576, 1536, 9, 3, tied=True), (1,)),
    Model("Llama 3.2 1B", 1_235_814_400, _config(16, 2048, 8192, 32, 8, tied=True), (1,)),
    Model("Llama 3.1 8B", 8_030_261_248, _config(32, 4096, 14336, 32, 8, tied=False), (1, 2)),
    Model("Llama 3.1 70B", 70_553_706_496, _config(80, 8192, 28672, 64, 8, tied=False), (4, 8)),
)
METHODS: dict[str, Settings] = {
    "IA3": settings_of({}),
    "adapter": settings_of({"adapter_tuning": {"type": "parallel_adapter", "adapter_dim": 16}}),
    "LoRA": settings_of({"adapter_tuning": {"type": "lora", "adapter_dim": 16, "target_modules": ["all"]}}),
}


def main() -> None:
    """Replace the tables of the page."""
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def updated(text: str) -> str:
    """Return the page with new tables between its markers."""
    for name, rows in (("gpu", _gpu_rows()), ("cpu", _cpu_rows()), ("trained", _trained_rows())):
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, _, rest = text.partition(begin)
        text = before + begin + "".join(f"| {' | '.join(row)} |\n" for row in rows) + end + rest.partition(end)[2]
    return text


def _heads(*names: str) -> Iterator[tuple[str, ...]]:
    yield names
    yield ("---",) * len(names)


def _gpu_rows() -> Iterator[tuple[str, ...]]:
    yield from _heads("model", "GPUs", *METHODS, *(f"{name}, layers recomputed" for name in METHODS))
    for model in MODELS:
        for ranks in model.gpus:
            devices = [Device(is_gpu=True, width=2, tensor=ranks, recomputes=each) for each in (False, True)]
            yield (
                model.name,
                str(ranks),
                *(_peak(model, method, GPU_TOKENS, device) for device in devices for method in METHODS.values()),
            )


def _cpu_rows() -> Iterator[tuple[str, ...]]:
    types = {"fp32": 4, "bf16": 2}
    yield from _heads("model", *(f"{name}, {kind}" for kind in types for name in METHODS))
    for model in MODELS[:3]:
        devices = [Device(is_gpu=False, width=width) for width in types.values()]
        yield (
            model.name,
            *(_peak(model, method, CPU_TOKENS, device) for device in devices for method in METHODS.values()),
        )


def _trained_rows() -> Iterator[tuple[str, ...]]:
    yield from _heads("model", *METHODS)
    for model in MODELS:
        yield (model.name, *(_trained_text(_trained(model.base(), method), model) for method in METHODS.values()))


def _trained_text(trained: int, model: Model) -> str:
    return f"{trained:,} ({trained / model.parameters:.3%}), {4 * trained / 2**20:.1f} MiB"


def _peak(model: Model, method: Settings, tokens: int, device: Device) -> str:
    """Return a rank's peak memory in GiB, for rows of so many tokens at the same time."""
    base = model.base()
    rows = Rows({"decoder": tokens}, tokens * ANSWER_SHARE, 1024)
    gib = peak_bytes(base, method, _trained(base, method), rows, device) / GIB
    return f"{gib:.1f}" if gib < 10 else f"{gib:.0f}"


def _trained(base: Base, method: Settings) -> int:
    return trainable_parameters(method, base.stacks)


if __name__ == "__main__":
    main()
