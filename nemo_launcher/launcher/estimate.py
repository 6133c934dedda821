# SPDX-License-Identifier: Apache-2.0
"""Estimate what a training needs from its configuration and that of the base model."""

from __future__ import annotations

import math
from pathlib import Path

from nemo_launcher.adapters import settings
from nemo_launcher.adapters.registry import settings_of
from nemo_launcher.checkpoint.outline import Outline, StackSizes, stack_sections, stack_sizes
from nemo_launcher.config.training_length import epoch_batches
from nemo_launcher.launcher.probe import LaunchProbe
from nemo_launcher.launcher.stage import Stage
from nemo_launcher.launcher.stages import Conversion, Learning
from nemo_launcher.megatron.sizes import head_problems, size_problems

OPTIMIZER_BYTES = 12  # per adapter parameter: the weight and Adam's two moments in fp32
ARCHIVE_BYTES = 8  # per adapter parameter: the weight in the .nemo and in its safetensors copy


def describe(stage: Stage, probe: LaunchProbe) -> str | None:
    """Return one line on what a training needs; None if nothing is known about it."""
    if not isinstance(stage, Learning):
        return None
    parts = []
    outline = _base(stage, probe)
    stacks = _stacks(outline)
    if outline is not None and stacks:
        trained = trainable_parameters(stage, stacks)
        gib = memory_bytes(stage, stacks, outline, trained) / 2**30
        parts += [f"{trained:,} parameters to train", f"{_shown(gib)} on each device"]
    steps = training_steps(stage, probe)
    if steps is not None:
        parts.append(f"{steps:,} steps")
    return f"{stage.name}: {', '.join(parts)}" if parts else None


def bytes_left(stage: Stage, probe: LaunchProbe) -> int | None:
    """Return approximately how many bytes a stage will write; None if this is unknown."""
    if isinstance(stage, Conversion):
        source = Path(stage.section.model.hf_model_path)
        files = source.glob("*.safetensors") if source.is_dir() else [source]
        return sum(file.stat().st_size for file in files if file.is_file())
    stacks = _stacks(_base(stage, probe)) if isinstance(stage, Learning) else None
    if not isinstance(stage, Learning) or not stacks:
        return None
    kept = max(stage.section.exp_manager.checkpoint_callback_params.save_top_k, 0) + 1  # and the last
    return trainable_parameters(stage, stacks) * (kept * OPTIMIZER_BYTES + ARCHIVE_BYTES)


def base_length(stage: Learning, probe: LaunchProbe) -> int | None:
    """Return the maximum sequence length of a stage's base model in tokens; None if it is unknown."""
    outline = _base(stage, probe)
    given = (outline.config.get(key) for key in ("encoder_seq_length", "max_position_embeddings")) if outline else ()
    return next((length for length in given if isinstance(length, int) and length > 0), None)


def trainable_parameters(stage: Learning, stacks: dict[str, StackSizes]) -> int:
    """Return the number of parameters that a learning stage adds to a base model with these stacks."""
    sizes = {name: (stack.num_layers, stack, len(stacks) > 1 and name == "decoder") for name, stack in stacks.items()}
    return settings.trainable_parameters(settings_of(stage.config["model"]), sizes)


def memory_bytes(stage: Learning, stacks: dict[str, StackSizes], outline: Outline, trained: int) -> float:
    """Return a rough estimate of a rank's memory in bytes: base, adapters with gradients and optimizer, activations.

    Activations follow Korthikanti et al. 2022 (arXiv:2205.05198), equation 2, without the attention matrix, which is
    never stored: s b h (10 + 24 / t) bytes per layer at 16 bits, for b samples of s tokens.
    """
    model = stage.section.model
    tensor, pipeline = model.tensor_model_parallel_size, model.pipeline_model_parallel_size
    width = 4 if str(stage.section.trainer.precision).startswith("32") else 2
    tokens = model.encoder_seq_length * model.micro_batch_size
    activations = sum(tokens * s.hidden_size * (10 + 24 / tensor) * s.num_layers for s in stacks.values()) / pipeline
    base = _base_parameters(stacks, outline) * width / (tensor * pipeline)
    adapters = trained * (OPTIMIZER_BYTES + 4) / (tensor * pipeline)
    return base + adapters + activations * width / 2


def training_steps(stage: Learning, probe: LaunchProbe) -> int | None:
    """Return a training's optimizer steps; None if its data does not exist yet or is too large to count."""
    trainer = stage.section.trainer
    steps = trainer.max_steps if trainer.max_steps not in (None, -1) else math.inf
    if trainer.max_epochs not in (None, -1):
        records = training_records(stage, probe)
        if records is None:
            return None
        steps = min(steps, trainer.max_epochs * epoch_batches(stage.section, records))
    return int(steps) if steps != math.inf else None


def training_records(stage: Learning, probe: LaunchProbe) -> int | None:
    """Return the number of training records; None if a file does not exist yet or is too large to count."""
    counts = [probe.num_lines(Path(path)) for path in stage.section.model.data.train_ds]
    return None if None in counts else sum(count or 0 for count in counts)


def _base(stage: Learning, probe: LaunchProbe) -> Outline | None:
    return probe.known_outline(Path(stage.section.model.language_model_path))


def _shown(gib: float) -> str:
    return f"about {gib:.1f} GiB" if gib >= 0.1 else "less than 0.1 GiB"


def _stacks(outline: Outline | None) -> dict[str, StackSizes] | None:
    """Return the sizes of a base model's stacks; None if they are unknown or invalid."""
    sections = stack_sections(outline.config) if outline is not None else {}
    if any(size_problems(section, "") or head_problems(section, "") for section in sections.values()):
        return None
    return {name: stack_sizes(section) for name, section in sections.items()} or None


def _base_parameters(stacks: dict[str, StackSizes], outline: Outline) -> float:
    """Return the base model's parameters, from its stored bytes if they are plausible, else from its layer sizes."""
    layers = float(sum(s.num_layers * _layer_parameters(s) for s in stacks.values()))
    stored = outline.weight_bytes or 0
    return max(layers, stored / 4 if stored / 4 >= layers else stored / 2)


def _layer_parameters(s: StackSizes) -> int:
    attention = s.hidden_size * s.kv_channels * (2 * s.num_attention_heads + 2 * s.num_query_groups)
    return attention + s.hidden_size * s.ffn_hidden_size * (3 if s.gated else 2)
