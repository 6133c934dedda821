# SPDX-License-Identifier: Apache-2.0
"""Estimate what a training needs from its configuration and that of the base model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from nemo_launcher.adapters import settings
from nemo_launcher.adapters.registry import method_of, settings_of
from nemo_launcher.checkpoint.outline import Outline, StackSizes
from nemo_launcher.config.automatic import TEST_STEPS, finds_rate
from nemo_launcher.config.hidden_states import stored_stack
from nemo_launcher.config.monitored import metrics_of
from nemo_launcher.config.precision import PRECISIONS
from nemo_launcher.config.sections.exp_manager import ValidationMetric
from nemo_launcher.config.training_length import planned_steps
from nemo_launcher.data.sampled_lengths import Lengths
from nemo_launcher.launcher import automatic
from nemo_launcher.launcher.activations import Device
from nemo_launcher.launcher.base_sizes import base_of, stacks_of
from nemo_launcher.launcher.memory import Base, backward_layers, packs_bf16, peak_bytes
from nemo_launcher.launcher.probe import LaunchProbe
from nemo_launcher.launcher.row_sizes import StepRows, longest_possible, num_threads, step_rows
from nemo_launcher.launcher.stage import Stage
from nemo_launcher.launcher.stages import Conversion, Learning
from nemo_launcher.megatron.sizes import described_sizes
from nemo_launcher.runtime.gpu_devices import has_gpu
from nemo_launcher.runtime.progress_file import duration
from nemo_launcher.runtime.row_costs import Calibration, cpu_name

_FORWARD_SHARE = 0.46  # of forward and backward; upper halves of SmolLM2-135M's layers on an AMD EPYC
ARCHIVE_BYTES = 8  # per adapter parameter: the weight in the .nemo and in its safetensors copy


def describe(stage: Stage, probe: LaunchProbe) -> str | None:
    """Return one line on what a training needs; None if nothing is known about it."""
    if not isinstance(stage, Learning):
        return None
    parts = []
    stacks = stacks_of(_base(stage, probe))
    if stacks:
        parts.append(f"{trainable_parameters(stage, stacks):,} parameters to train")
    known = _known(stage, probe)
    if known is not None:
        parts.append(peak_memory(known))
    stored = hidden_bytes(stage, probe)
    if stored is not None:
        gib = stored / 2**30
        parts.append(f"{f'about {gib:.1f}' if gib >= 0.1 else 'less than 0.1'} GiB of hidden states on the disk")
    steps, tested = training_steps(stage, probe), steps_of_range_test(stage)
    if tested:
        parts.append(f"a learning rate range test of {tested} steps (find)")
    if steps is not None:
        parts.append(
            f"{'at most ' if may_end_earlier(stage) else ''}{steps:,} steps{' in all' if stage.resumes() else ''}"
        )
    parts += filter(None, [automatic.described(stage)])
    seconds = None if known is None or steps is None else training_seconds(known, tested + steps)
    if seconds is not None:
        parts.append(f"about {duration(seconds)} for them on this machine")
    parts += filter(None, [_answered(stage, probe)])
    return f"{stage.name}: {', '.join(parts)}" if parts else None


def _answered(stage: Learning, probe: LaunchProbe) -> str | None:
    """Return what the metrics of validations cost in addition; None without any."""
    manager = stage.section.exp_manager
    names = metrics_of(manager)
    if not names:
        return None
    options = manager.validation_metric_params or ValidationMetric()
    counts = [probe.num_lines(Path(path)) for path in stage.section.model.data.validation_ds]
    known = None if None in counts else sum(count or 0 for count in counts)
    records = f"up to {options.max_records:,}" if known is None else f"{min(known, options.max_records):,} of {known:,}"
    asked = f"{records} validation records for {' and '.join(names)} (max_records) in each validation"
    return f"and answers of at most {options.tokens_to_generate:,} tokens to {asked}, whose time is not included"


def bytes_left(stage: Stage, probe: LaunchProbe) -> int | None:
    """Return approximately how many bytes a stage will write; None if this is unknown."""
    if isinstance(stage, Conversion):
        source = Path(stage.section.model.hf_model_path)
        files = source.glob("*.safetensors") if source.is_dir() else [source]
        return sum(file.stat().st_size for file in files if file.is_file())
    stacks = stacks_of(_base(stage, probe)) if isinstance(stage, Learning) else None
    if not isinstance(stage, Learning) or not stacks:
        return None
    kept = max(stage.section.exp_manager.checkpoint_callback_params.save_top_k, 0) + 1  # and the last
    return trainable_parameters(stage, stacks) * (kept * settings.OPTIMIZER_BYTES + ARCHIVE_BYTES)


def base_length(stage: Learning, probe: LaunchProbe) -> int | None:
    """Return the maximum sequence length of a stage's base model in tokens; None if it is unknown."""
    outline = _base(stage, probe)
    given = (outline.config.get(key) for key in ("encoder_seq_length", "max_position_embeddings")) if outline else ()
    return next((length for length in given if isinstance(length, int) and length > 0), None)


def trainable_parameters(stage: Learning, stacks: Mapping[str, StackSizes]) -> int:
    """Return the number of parameters that a learning stage adds to a base model with these stacks."""
    has_experts = any(stack.experts > 1 for stack in stacks.values())
    return settings.trainable_parameters(settings_of(stage.config["model"]), stacks, has_experts=has_experts)


def peak_memory(known: _Known) -> str:
    """Return the peak memory of a rank as text.

    It is "about" so much for the samples in the data files, or "at most" while these do not exist.
    """
    gib = _peak(known) / 2**30
    where = "memory on each GPU" if known.device.is_gpu else "memory in each process"
    return (
        f"{'about' if known.measured else 'at most'} {gib:.1f} GiB of {where}"
        if gib >= 0.1
        else f"less than 0.1 GiB of {where}"
    )


def gpu_bytes(stage: Learning, probe: LaunchProbe) -> float | None:
    """Return about how much memory a rank needs on its GPU, in bytes; None on a CPU, or if the base is unknown."""
    known = _known(stage, probe)
    return _peak(known) if known is not None and known.device.is_gpu else None


def _peak(known: _Known) -> float:
    trained = trainable_parameters(known.stage, known.base.stacks)
    return peak_bytes(known.base, known.settings, trained, known.rows.concurrent(), known.device)


def training_seconds(known: _Known, steps: int) -> float | None:
    """Return about how long the steps take, by the costs that were measured on this machine; None without them."""
    model, method = known.stage.section.model, method_of(known.stage.config["model"])
    if not known.measured or known.device.is_gpu or known.device.ranks > 1 or model.data.layout == "fixed":
        return None
    wanted = Calibration(
        cpu=cpu_name(),
        threads=num_threads(),
        model=f"{described_sizes(known.base.stacks)} {method.name}",
        dtype=f"torch.{PRECISIONS[known.stage.section.trainer.precision]}",
        torch=version("torch"),
    )
    costs = wanted.read()
    each = None if costs is None else known.rows.seconds(costs, known.replicas)
    share = _share_of_work(known)
    return None if each is None or share is None else steps * each * share


def _share_of_work(known: _Known) -> float | None:
    """Return the work of a step relative to that with adapters in all layers, for which costs are measured.

    None for a T5 with stored hidden states: what its decoder costs alone is not measured.
    """
    below, data = 0.0 if known.stage.section.model.data.cache_hidden else _FORWARD_SHARE, known.rows.concurrent().tokens
    if below == 0.0 and len(known.base.stacks) > 1:
        return None
    work = total = 0.0
    for name, count in backward_layers(known.base, known.settings).items():
        layers, tokens = known.base.stacks[name].num_layers, data[name]
        again = known.device.recomputed_layers(count)
        work += tokens * (count + below * (layers - count) + _FORWARD_SHARE * again)
        total += tokens * layers
    return work / total


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known about a training's base and samples."""

    stage: Learning
    """The training."""
    base: Base
    """The base model."""
    settings: settings.Settings
    """The settings of the adapters."""
    device: Device
    """How a rank computes."""
    replicas: int
    """The number of model replicas."""
    rows: StepRows
    """The rows of a step."""
    measured: bool
    """Whether the samples were measured; otherwise they are as long as the settings allow."""


def _known(stage: Learning, probe: LaunchProbe) -> _Known | None:
    """Return what is known; None if the base is not."""
    outline = _base(stage, probe)
    stacks = stacks_of(outline)
    base = base_of(outline, stacks) if outline is not None and stacks else None
    if outline is None or base is None:
        return None
    model, trainer, limit = stage.section.model, stage.section.trainer, token_limit(stage, probe)
    is_t5, device = "encoder" in base.stacks, _device(stage)
    found = probe.lengths(outline.path, stage.section, limit, answer_apart=is_t5)
    replicas = max(1, trainer.devices * trainer.num_nodes // device.ranks)
    lengths = found or longest_possible(limit, model.decoder_seq_length)
    rows = step_rows(model, lengths, device, is_t5=is_t5, replicas=replicas)
    return _Known(stage, base, settings_of(stage.config["model"]), device, replicas, rows, found is not None)


def hidden_bytes(stage: Learning, probe: LaunchProbe) -> float | None:
    """Return about how many bytes of hidden states are stored (model.data.cache_hidden); None if none or unknown.

    The job counts the tokens before it computes anything, and refuses a disk that is too small.
    """
    outline, data = _base(stage, probe), stage.section.model.data
    stacks = stacks_of(outline)
    if not data.cache_hidden or outline is None or not stacks:
        return None
    stack = stored_stack(stacks)
    found = measured_lengths(stage, probe)
    counts = [probe.num_lines(Path(path)) for path in (*data.train_ds, *data.validation_ds)]
    if found is None or None in counts:
        return None
    tokens = found.own if len(stacks) == 1 else found.mean
    return sum(count or 0 for count in counts) * tokens * stacks[stack].hidden_size * _width(stage)


def token_limit(stage: Learning, probe: LaunchProbe) -> int:
    """Return the maximum number of tokens in a sample."""
    model = stage.section.model
    return min(filter(None, (model.encoder_seq_length, model.data.max_seq_length, base_length(stage, probe))))


def _width(stage: Learning) -> int:
    """Return the bytes of an activation."""
    return 4 if PRECISIONS[stage.section.trainer.precision] == "float32" else 2


def _device(stage: Learning) -> Device:
    """Return how a rank computes; `auto` is a GPU if this machine has one."""
    model, accelerator = stage.section.model, stage.section.trainer.accelerator
    return Device(
        is_gpu=accelerator in ("gpu", "cuda") or (accelerator == "auto" and has_gpu()),
        width=_width(stage),
        tensor=model.tensor_model_parallel_size,
        pipeline=model.pipeline_model_parallel_size,
        recomputes=model.activations_checkpoint_granularity == "full",
        recomputed=None
        if model.activations_checkpoint_method == "uniform"
        else model.activations_checkpoint_num_layers or 0,
        packs=_width(stage) == 4 or packs_bf16(),
    )


def measured_lengths(stage: Learning, probe: LaunchProbe) -> Lengths | None:
    """Return the lengths of a training's samples, from a part of its data; None if the data or the base is unknown."""
    outline, stacks = _base(stage, probe), stacks_of(_base(stage, probe))
    if outline is None or not stacks:
        return None
    return probe.lengths(outline.path, stage.section, token_limit(stage, probe), answer_apart="encoder" in stacks)


def training_steps(stage: Learning, probe: LaunchProbe) -> int | None:
    """Return a training's optimizer steps; None if its data does not exist yet or is too large to count."""
    return planned_steps(stage.section, training_records(stage, probe))


def steps_of_range_test(stage: Learning) -> int:
    """Return the optimizer steps of a learning rate range test before a training; 0 if it needs none."""
    return TEST_STEPS if finds_rate(stage.config) and not stage.resumes() else 0


def may_end_earlier(stage: Learning) -> bool:
    """Return whether a training may have fewer steps than `training_steps`.

    It may stop early or at a time limit, or drop samples that are too long, which only tokenizing them can tell.
    """
    trainer, manager, data = stage.section.trainer, stage.section.exp_manager, stage.section.model.data
    drops = data.max_dropped_share > 0 and trainer.max_epochs not in (None, -1)
    return drops or manager.create_early_stopping_callback or trainer.max_time is not None


def training_records(stage: Stage, probe: LaunchProbe) -> int | None:
    """Return the number of a training's records; None if a file does not exist yet or is too large to count."""
    if not isinstance(stage, Learning):
        return None
    counts = [probe.num_lines(Path(path)) for path in stage.section.model.data.train_ds]
    return None if None in counts else sum(count or 0 for count in counts)


def _base(stage: Learning, probe: LaunchProbe) -> Outline | None:
    return probe.known_outline(Path(stage.section.model.language_model_path))
