# SPDX-License-Identifier: Apache-2.0
"""The one table of keys that are accepted and have no effect: why, and which values need no word about it.

A value that would have changed numbers in NVIDIA's launcher, or an option of the trainer or exp_manager that would do
nothing, is refused; any other one is told once, at launch. A test holds that every key of the configuration is either
read by the code or in this table, and never both.
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
    """The keys below each of the sections."""
    reason: str
    """Why, as the user is told."""
    documented: tuple[object, ...]
    """Values that are accepted in silence; the first is the default."""
    refused: bool = False
    """Whether any other value is a mistake rather than a warning."""
    instead: str = ""
    """What to write, where that is not the documented value."""
    besides: str = ""
    """What else to do."""


_LOGGERS = "exp_manager.create_tensorboard_logger and create_wandb_logger make the loggers"
_SAMPLER = "the data loader deals samples out by data-parallel rank"
_PLACE = "exp_manager.explicit_log_dir says where results go"
_SCHEDULE = "schedules follow the number of steps, not a figure"
_SIZES = "the parallel sizes of model say it"
_BINDING = "ranks are not bound to CPU memory nodes"
_BINDING_FIX = "on Slurm: 'cluster.srun_args=[--cpu-bind=cores]'"

IGNORED = (
    Ignored(sections=LEARNING, keys=("trainer.logger",), reason=_LOGGERS, documented=(False,), refused=True),
    Ignored(
        sections=LEARNING,
        keys=("trainer.enable_checkpointing",),
        reason="exp_manager.create_checkpoint_callback makes the checkpoints",
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
        besides=", and raise model.global_batch_size instead",
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
        reason="nothing here counts them",
        documented=(False,),
        refused=True,
    ),
    Ignored(
        sections=LEARNING,
        keys=("model.virtual_prompt_style",),
        reason="there are no virtual prompts: adapters go into the layers",
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
        reason="there are no buckets: the few adapter gradients are summed in one piece",
        documented=(False,),
    ),
    Ignored(
        sections=("evaluation",), keys=("trainer.logger",), reason="an evaluation logs nothing", documented=(False,)
    ),
    Ignored(
        sections=("evaluation",),
        keys=("split_string",),
        reason="a prediction is what follows the prompt, found by its position",
        documented=("answer:", "answer :"),
    ),
    Ignored(
        sections=("evaluation",),
        keys=("inference.all_probs", "inference.compute_logprob"),
        reason="answers are written, without probabilities",
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
"""Copies of the product of the parallel sizes in adapter_learning and ia3_learning, which nothing reads."""


def full_keys() -> dict[str, str]:
    """Return every key of the table -> its reason."""
    found = {
        f"{section}.{key}".lstrip("."): entry.reason
        for entry in IGNORED
        for section in entry.sections
        for key in entry.keys
    }
    return found | {f"{section}.{key}": _SIZES for section in LEARNING for key in SIZE_COPIES}


def keys_below(parent: str, section: str) -> list[str]:
    """Return the names of the ignored keys right below `parent`, a key of `section`."""
    prefix = f"{section}.{parent}."
    return [name for key in full_keys() if "." not in (name := key.removeprefix(prefix)) and key.startswith(prefix)]


def refused(config: Mapping[str, object], section: str, key: KeyOf = str) -> list[Problem]:
    """Return the problems of ignored keys in the configuration of one section that must have their documented value."""
    return [problem for entry, problem in _found(config, section, key) if entry.refused]


def told(config: Mapping[str, object], section: str, key: KeyOf = str) -> list[Problem]:
    """Return what to tell of ignored keys in the configuration of one section, one line for each reason."""
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
    """Yield the entries whose keys have another value than a documented one, each with its problem."""
    for entry in IGNORED:
        for name in entry.keys if section in entry.sections else ():
            value = at(config, name.split("."))
            if value is ABSENT or _is_documented(value, entry.documented):
                continue
            default = entry.documented[0] if entry.documented else None
            fix = entry.instead or override(key(name), default) + entry.besides
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
    """Return the value at a path of keys, ABSENT where there is none."""
    for key in keys:
        if not isinstance(config, Mapping) or key not in config:
            return ABSENT
        config = config[key]
    return config


def rows() -> list[tuple[str, str, str]]:
    """Return the table as the README has it: keys, the values that need no word, and what is told of any other one."""
    lines = []
    for entry in IGNORED:
        documented = ", ".join(hydra_value(value) for value in entry.documented) or "none"
        outcome = "refused" if entry.refused else "told"
        lines.append((", ".join(f"`{key}`" for key in entry.keys), documented, f"{outcome}: {entry.reason}"))
    return [*lines, (", ".join(f"`{key}`" for key in SIZE_COPIES), "1, the product", f"told: {_SIZES}")]
