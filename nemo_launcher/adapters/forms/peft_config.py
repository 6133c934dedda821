# SPDX-License-Identifier: Apache-2.0
"""The settings in PEFT's adapter_config.json: every key is used, has no effect on results, or is refused by name.

Source: PEFT 0.21, src/peft/tuners/lora/config.py, src/peft/tuners/ia3/config.py and src/peft/config.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from nemo_launcher.checkpoint.stored_tensor import shown
from nemo_launcher.config.constraints import shown as shown_value
from nemo_launcher.errors import Problem, UserError

_METHODS = {"IA3": "ia3", "LORA": "lora"}
_USED = ("peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern")
_WITHOUT_EFFECT = (
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    # which modules have adapters: their tensors say it
    *("target_modules", "exclude_modules", "feedforward_modules", "layers_to_transform", "layers_pattern"),
    *("fan_in_fan_out", "init_ia3_weights", "eva_config", "runtime_config", "ensure_weight_tying"),
    *("megatron_config", "megatron_core", "qalora_group_size"),
)
_SAFE_INITS = ("gaussian", "orthogonal", "eva")
"""Values of init_lora_weights that do not change the base's weights."""
_PLAIN_PATTERN = re.compile(r"\^?[\w.\-]+")
"""Patterns without repetition: letters, and dots, which stand for any character."""
_MAX_RANK = 1 << 20
_MAX_PATTERNS = 1 << 14
"""Patterns of each kind, which are compared with every module; PEFT writes at most one for each."""
Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeftSettings:
    """What an adapter_config.json says about the computation."""

    method: str
    """The method's name here."""
    common_rank: int = 8
    """`r`."""
    alpha: float = 8.0
    """`lora_alpha`."""
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    """Other ranks, by a pattern of module names."""
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    """Other values of alpha, by a pattern of module names."""
    use_rslora: bool = False
    """Whether an update is scaled by alpha / sqrt(r) instead of alpha / r."""
    dropout: float = 0.0
    """The probability of dropout of an update's input, in training."""

    def rank(self, module: str) -> int:
        """Return the rank of a module's update."""
        return _matching(self.rank_pattern, module, self.common_rank)

    def scale(self, module: str) -> float:
        """Return the factor of a module's update."""
        rank = self.rank(module)
        return _matching(self.alpha_pattern, module, self.alpha) / (math.sqrt(rank) if self.use_rslora else rank)


def _matching(patterns: Mapping[str, Number], module: str, otherwise: Number) -> Number:
    """Return the value of the first pattern that fits the end of a module's name, as PEFT's get_pattern_key does."""
    return next((value for key, value in patterns.items() if _is_end(key, module)), otherwise)


def _is_end(pattern: str, module: str) -> bool:
    """Return whether a _PLAIN_PATTERN fits the last parts of a name; ^ stands for its beginning."""
    plain = pattern.removeprefix("^")
    start = len(module) - len(plain)
    if start < 0 or (start and (plain != pattern or module[start - 1] != ".")):
        return False
    return all(theirs in (own, ".") for theirs, own in zip(plain, module[start:], strict=True))


def read_settings(config: Mapping[str, object], source: str) -> PeftSettings:
    """Return the settings in an adapter_config.json. Raises UserError with all keys that are not supported."""
    kind = config.get("peft_type")
    method = _METHODS.get(kind) if isinstance(kind, str) else None
    where = f"{source}/adapter_config.json"
    if method is None:
        fix = f"supported: {', '.join(_METHODS)}"
        raise UserError(Problem(f"{where}: peft_type", f"{shown_value(kind)} is not supported", fix))
    problems = [
        Problem(f"{where}: {shown(key)}", f"{shown_value(value)} is not supported", "use an adapter without it")
        for key, value in config.items()
        if key not in _USED + _WITHOUT_EFFECT and not _is_off(key, value)
    ]
    for key, fits, what in _CHECKS:
        if config.get(key) is not None and not fits(config[key]):
            problems.append(Problem(f"{where}: {key}", f"{shown_value(config[key])} is not {what}", f"write {what}"))
    if problems:
        raise UserError(problems[:20])
    given: dict[str, Any] = {name: config[key] for key, name in _FIELDS.items() if config.get(key) is not None}
    return PeftSettings(method=method, **(given if method == "lora" else {}))


_FIELDS = {
    "r": "common_rank",
    "lora_alpha": "alpha",
    "rank_pattern": "rank_pattern",
    "alpha_pattern": "alpha_pattern",
    "use_rslora": "use_rslora",
    "lora_dropout": "dropout",
}
"""PEFT's names of the fields of PeftSettings."""


def _is_off(key: str, value: object) -> bool:
    """Return whether a key's value leaves the computation as it is without the key."""
    if key == "init_lora_weights":
        return value is None or isinstance(value, bool) or value in _SAFE_INITS
    return value == "none" if key == "bias" else not value


def _is_rank(value: Any) -> bool:
    return type(value) is int and 0 < value <= _MAX_RANK


def _is_alpha(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < 1e9


def _is_probability(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1


def _patterns_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        return (
            isinstance(value, Mapping)
            and len(value) <= _MAX_PATTERNS
            and all(
                isinstance(key, str) and _PLAIN_PATTERN.fullmatch(key) is not None and fits(item)
                for key, item in value.items()
            )
        )

    return check


_CHECKS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("r", _is_rank, f"a whole number from 1 to {_MAX_RANK:,}"),
    ("lora_alpha", _is_alpha, "a number above 0"),
    ("lora_dropout", _is_probability, "a number from 0 to below 1"),
    ("use_rslora", lambda value: isinstance(value, bool), "true or false"),
    ("rank_pattern", _patterns_of(_is_rank), f"a mapping of at most {_MAX_PATTERNS:,} modules to ranks"),
    (
        "alpha_pattern",
        _patterns_of(_is_alpha),
        f"a mapping of at most {_MAX_PATTERNS:,} modules to numbers above 0",
    ),
)
