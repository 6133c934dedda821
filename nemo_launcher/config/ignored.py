# SPDX-License-Identifier: Apache-2.0
"""The table of keys that are accepted without effect, with the reason and the values that need no warning.

A value that would change results in NVIDIA's launcher, or an option of the trainer or exp_manager that would do
nothing, is refused; any other value causes one warning at launch. A test checks that every key of the configuration
is either read by the code or in this table, and never both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_launcher.config.overrides import hydra_value, override
from nemo_launcher.errors import Problem

KeyOf = Callable[[str], str]
LEARNING = ("adapter_learning", "ia3_learning")


@dataclass(frozen=True, kw_only=True)
class Ignored:
    """Keys without effect."""

    sections: tuple[str, ...]
    """The sections that have the keys; "" for the top level."""
    keys: tuple[str, ...]
    """The keys within each section."""
    reason: str
    """The reason shown to the user."""
    documented: tuple[object, ...]
    """Values that are accepted without a warning; the first is the default."""
    refused: bool = False
    """Whether any other value is an error rather than a warning."""
    instead: str = ""
    """The fix to suggest if it is not the documented value."""
    fix_suffix: str = ""
    """Text to append to the fix."""


_LOGGERS = "exp_manager.create_tensorboard_logger, create_wandb_logger and others create the loggers"
_SAMPLER = "the data loader distributes samples to the data-parallel ranks"
_PLACE = "exp_manager.explicit_log_dir is the folder for results"
_SCHEDULE = "schedules depend on the number of steps, not on a metric"
_SIZES = "the parallel sizes in model determine it"
_BINDING = "ranks are not bound to NUMA nodes"
_BINDING_FIX = "on Slurm: 'cluster.srun_args=[--cpu-bind=cores]'"

IGNORED = (
    Ignored(sections=LEARNING, keys=("trainer.logger",), reason=_LOGGERS, documented=(False,), refused=True),
    Ignored(
        sections=LEARNING,
        keys=("trainer.enable_checkpointing",),
        reason="exp_manager.create_checkpoint_callback creates the checkpoints",
        documented=(False,),
        refused=True,
    ),
    Ignored(
        sections=LEARNING,
        keys=("trainer.use_distributed_sampler", "trainer.replace_sampler_ddp"),
        reason=_SAMPLER,
        documented=(False,),
        refused=True,
    ),
    Ignored(
        sections=LEARNING,
        keys=("trainer.accumulate_grad_batches",),
        reason="model.micro_batch_size and model.global_batch_size set the accumulation",
        documented=(1,),
        refused=True,
        fix_suffix=", and raise model.global_batch_size instead",
    ),
    Ignored(
        sections=LEARNING,
        keys=("exp_manager.exp_dir", "exp_manager.version"),
        reason=_PLACE,
        documented=(None,),
        refused=True,
    ),
    Ignored(
        sections=LEARNING,
        keys=("exp_manager.log_tflops_per_sec_per_gpu",),
        reason="it is not computed",
        documented=(False,),
        refused=True,
    ),
    Ignored(
        sections=LEARNING,
        keys=("model.virtual_prompt_style",),
        reason="there are no virtual prompts: adapters are inserted into the layers",
        documented=("no-prompts",),
        refused=True,
    ),
    Ignored(
        sections=LEARNING,
        keys=("model.optim.sched.monitor",),
        reason=_SCHEDULE,
        documented=("val_loss", None),
        refused=True,
    ),
    Ignored(
        sections=LEARNING,
        keys=("model.optim.sched.reduce_on_plateau",),
        reason=_SCHEDULE,
        documented=(False,),
        refused=True,
    ),
    Ignored(
        sections=LEARNING,
        keys=("model.gradient_as_bucket_view",),
        reason="there are no buckets: the small adapter gradients are reduced together",
        documented=(False,),
    ),
    Ignored(
        sections=("evaluation",), keys=("trainer.logger",), reason="an evaluation logs nothing", documented=(False,)
    ),
    Ignored(
        sections=("evaluation",),
        keys=("split_string",),
        reason="a prediction is the text after the prompt, found by position",
        documented=("answer:", "answer :"),
    ),
    Ignored(
        sections=("evaluation",),
        keys=("inference.all_probs", "inference.compute_logprob"),
        reason="answers are written without probabilities",
        documented=(False,),
    ),
    Ignored(sections=("",), keys=("numa_mapping.enable",), reason=_BINDING, documented=(False,), instead=_BINDING_FIX),
    Ignored(
        sections=("",),
        keys=tuple(f"numa_mapping.{key}" for key in ("mode", "scope", "cores", "balanced", "min_cores", "max_cores")),
        reason=_BINDING,
        documented=(),
        instead=_BINDING_FIX,
    ),
)

SIZE_COPIES = ("model.model_parallel_size", "exp_manager.checkpoint_callback_params.model_parallel_size")
"""Unused copies of the product of the parallel sizes in adapter_learning and ia3_learning."""


def full_keys() -> dict[str, str]:
    """Return the reason of every key in the table: {full key: reason}."""
    found = {
        f"{section}.{key}".lstrip("."): entry.reason
        for entry in IGNORED
        for section in entry.sections
        for key in entry.keys
    }
    return found | {f"{section}.{key}": _SIZES for section in LEARNING for key in SIZE_COPIES}


def keys_below(parent: str, section: str) -> list[str]:
    """Return the names of the ignored keys directly below `parent`, a key of `section`."""
    prefix = f"{section}.{parent}."
    return [name for key in full_keys() if "." not in (name := key.removeprefix(prefix)) and key.startswith(prefix)]


def refused(config: Mapping[str, object], section: str, key: KeyOf = str) -> list[Problem]:
    """Return the errors of one section's ignored keys that must have their documented values."""
    return [problem for entry, problem in _found(config, section, key) if entry.refused]


def warnings(config: Mapping[str, object], section: str, key: KeyOf = str) -> list[Problem]:
    """Return the warnings about one section's ignored keys, one for each reason."""
    by_reason: dict[str, list[Problem]] = {}
    for entry, problem in _found(config, section, key):
        if not entry.refused:
            by_reason.setdefault(entry.reason, []).append(problem)
    problems = list(_size_copies(config, key)) if section in LEARNING else []
    for reason, (first, *more) in by_reason.items():
        what = f"has no effect: {reason}" + (f"; nor have {', '.join(p.where for p in more)}" if more else "")
        problems.append(Problem(first.where, what, first.fix))
    return problems


def _found(config: Mapping[str, object], section: str, key: KeyOf) -> Iterator[tuple[Ignored, Problem]]:
    """Yield (entry, problem) for each key with a value other than the documented ones."""
    for entry in IGNORED:
        for name in entry.keys if section in entry.sections else ():
            value = at(config, name.split("."))
            if value is ABSENT or _is_documented(value, entry.documented):
                continue
            default = entry.documented[0] if entry.documented else None
            fix = entry.instead or override(key(name), default) + entry.fix_suffix
            yield entry, Problem(key(name), f"must be {default}: {entry.reason}", fix)


def _is_documented(value: object, documented: Sequence[object]) -> bool:
    return any(type(value) is type(other) and value == other for other in documented)


def _size_copies(config: Mapping[str, Any], key: KeyOf) -> Iterator[Problem]:
    model = config["model"]
    product = model["tensor_model_parallel_size"] * model["pipeline_model_parallel_size"]
    for name in SIZE_COPIES:
        value = at(config, name.split("."))
        if value is not ABSENT and value not in (None, 1, product):
            yield Problem(key(name), f"has no effect: {_SIZES}, {product} in all", f"{key(name)}={product}")


ABSENT = object()


def at(config: object, keys: Sequence[str]) -> object:
    """Return the value at a path of keys, or ABSENT."""
    for key in keys:
        if not isinstance(config, Mapping) or key not in config:
            return ABSENT
        config = config[key]
    return config


def rows() -> list[tuple[str, str, str]]:
    """Return the table's rows for the documentation: keys, values without a warning, outcome of other values."""
    lines = []
    for entry in IGNORED:
        documented = ", ".join(hydra_value(value) for value in entry.documented) or "none"
        outcome = "refused" if entry.refused else "warning"
        lines.append((", ".join(f"`{key}`" for key in entry.keys), documented, f"{outcome}: {entry.reason}"))
    return [*lines, (", ".join(f"`{key}`" for key in SIZE_COPIES), "1, the product", f"warning: {_SIZES}")]
