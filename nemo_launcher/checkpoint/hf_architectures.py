# SPDX-License-Identifier: Apache-2.0
"""Hugging Face architectures that can be converted to a base, and checks of their config.json. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nemo_launcher.checkpoint.stored_tensor import shown
from nemo_launcher.config.families import FAMILIES
from nemo_launcher.errors import Problem, json_kind
from nemo_launcher.files.values import Section

ARCHITECTURES = {name: kind for family in FAMILIES.values() for name, kind in family.architectures.items()}
"""Architecture -> model_type of its configuration."""
CONVERTERS = {kind: family.converter for family in FAMILIES.values() for kind in family.architectures.values()}
"""model_type -> file below conf/conversion_hf2nemo/ that converts it."""
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""`dtype` in config.json -> name in weight files."""
SUPPORTED = f"supported: {', '.join(ARCHITECTURES)}"


@dataclass(frozen=True, slots=True)
class _Keys:
    """The keys that an architecture's config.json needs."""

    counts: tuple[str, ...]
    """Required positive integers."""
    optional_counts: tuple[str, ...]
    """Positive integers with a default in transformers."""
    numbers: tuple[str, ...]
    """Positive numbers."""
    divisions: tuple[tuple[str, str], ...]
    """Pairs of keys: the first value must be a multiple of the second."""


_LLAMA = _Keys(
    counts=("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"),
    optional_counts=("num_key_value_heads", "head_dim", "max_position_embeddings"),
    numbers=("rms_norm_eps", "rope_theta"),
    divisions=(("hidden_size", "num_attention_heads"), ("num_attention_heads", "num_key_value_heads")),
)
_KEYS = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "gpt2": _Keys(
        counts=("n_embd", "n_head", "n_layer", "vocab_size"),
        optional_counts=("n_positions", "n_inner"),
        numbers=("layer_norm_epsilon",),
        divisions=(("n_embd", "n_head"),),
    ),
    "t5": _Keys(
        counts=("d_model", "d_kv", "d_ff", "num_layers", "num_heads", "vocab_size"),
        optional_counts=("num_decoder_layers", "relative_attention_num_buckets", "relative_attention_max_distance"),
        numbers=("layer_norm_epsilon",),
        divisions=(),
    ),
}
_FLAGS = ("tie_word_embeddings", "attention_bias", "mlp_bias", "scale_attn_weights", "use_sliding_window")
_LARGEST = 1 << 24
_MOST_LAYERS = 4096
MAX_LABELS = 100_000
"""The maximum number of labels: a tokenizer may be in a classifier's folder; language models have none."""
_OTHER_NAMES = {"n_embd": "hidden_size", "n_head": "num_attention_heads", "n_layer": "num_hidden_layers"}
"""Alternative names of GPT-2's keys in transformers."""


def config_problems(config: object, source: str) -> list[Problem]:
    """Return what prevents the conversion of a config.json: its architecture, and types and sizes of its values."""
    if not isinstance(config, Mapping):
        return [
            Problem(
                source, f"is {json_kind(config)}, not a mapping, so it is not a model's configuration", "copy it again"
            )
        ]
    problem = _architecture_problem(config, source)
    if problem is not None:
        return [problem]
    keys = _KEYS[model_type(config)]
    problems = []
    for key in keys.counts + keys.optional_counts:
        value = _value(config, key)
        if value is None and key in keys.counts:
            problems.append(Problem(f"{source}: {key}", "is absent", "copy config.json again"))
        elif value is not None and not (type(value) is int and 0 < value <= _LARGEST):
            problems.append(
                Problem(f"{source}: {key}", f"{_short(value)} is not a whole number from 1 to {_LARGEST:,}")
            )
        elif value is not None and key.endswith(("layers", "n_layer")) and value > _MOST_LAYERS:
            problems.append(Problem(f"{source}: {key}", f"{value:,} layers exceed the limit of {_MOST_LAYERS:,}"))
    for key in keys.numbers:
        value = config.get(key)
        if value is not None and not (type(value) in (int, float) and value > 0):
            problems.append(Problem(f"{source}: {key}", f"{_short(value)} is not a number above 0"))
    labels = config.get("num_labels")
    if labels is not None and not (type(labels) is int and 0 <= labels <= MAX_LABELS):
        what = f"{_short(labels)} is not a valid number of labels"
        problems.append(Problem(f"{source}: num_labels", what, "remove the key: a language model has no labels"))
    for key in _FLAGS:
        if not isinstance(config.get(key, False), bool | None):
            problems.append(Problem(f"{source}: {key}", f"{_short(config[key])} is neither true nor false"))
    dtype = config.get("dtype", config.get("torch_dtype"))
    if dtype is not None and (not isinstance(dtype, str) or dtype.removeprefix("torch.") not in DTYPES):
        fix = f"set it to one of {', '.join(DTYPES)}"
        problems.append(Problem(f"{source}: dtype", f"{_short(dtype)} is not a supported dtype of weights", fix))
    problems = problems or _division_problems(config, keys, source)
    if not problems:
        problem = settings_problem(model_type(config), config, source)
        problems += [problem] if problem is not None else []
    return problems


ROPE_TYPES = ("default", "linear", "llama3")
GPT2_ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh")
T5_ACTIVATIONS = ("relu", "gated-relu", "gated-gelu", "gated-silu")


def settings_problem(kind: str, config: Mapping[str, object], source: str) -> Problem | None:
    """Return a Problem for unsupported settings of a configuration, or None. Missing keys are not checked."""
    found = []
    if kind in ("llama", "mistral", "qwen2"):
        found += _rope_settings(config)
        if config.get("attention_bias") or config.get("mlp_bias"):
            found.append("attention_bias or mlp_bias True")
        if config.get("hidden_act", "silu") != "silu":
            found.append(f"hidden_act {_short(config['hidden_act'])}")
    elif kind == "gpt2":
        if config.get("activation_function", GPT2_ACTIVATIONS[0]) not in GPT2_ACTIVATIONS:
            found.append(f"activation_function {_short(config['activation_function'])}")
        if config.get("scale_attn_weights") is False or config.get("scale_attn_by_inverse_layer_idx"):
            found.append("scaling of attention scores")
    else:
        found += _t5_settings(config)
    if not found:
        return None
    return Problem(source, f"not supported yet: {', '.join(found)}", "use a model without it")


def _t5_settings(config: Mapping[str, object]) -> list[str]:
    """Return the unsupported settings of T5's feed-forward layers.

    transformers derives dense_act_fn and is_gated_act from feed_forward_proj, unless config.json has them too.
    """
    kind = config.get("feed_forward_proj", T5_ACTIVATIONS[0])
    if kind not in T5_ACTIVATIONS:
        return [f"feed_forward_proj {_short(kind)}"]
    gate, _, name = kind.rpartition("-")
    derived = {"is_gated_act": gate == "gated", "dense_act_fn": "gelu_new" if kind == "gated-gelu" else name}
    return [
        f"{key} {_short(config[key])} beside feed_forward_proj {kind!r}"
        for key, value in derived.items()
        if config.get(key, value) != value
    ]


def _rope_settings(config: Mapping[str, object]) -> list[str]:
    """Return the unsupported settings of rotary positions, which older files call rope_scaling."""
    found = []
    for section in filter(None, (config.get("rope_parameters"), config.get("rope_scaling"))):
        if not isinstance(section, Mapping):
            return [f"rope_scaling {_short(section)}"]
        rope_type = section.get("rope_type", section.get("type", ROPE_TYPES[0]))
        if rope_type not in ROPE_TYPES:
            found.append(f"rope_type {_short(rope_type)}")
        if section.get("partial_rotary_factor", 1) not in (None, 1):
            found.append(f"partial_rotary_factor {_short(section['partial_rotary_factor'])}")
    return list(dict.fromkeys(found))


def architecture_of(config: Section) -> str:
    """Return the first architecture of a configuration that has no config_problems."""
    names = config["architectures"]
    assert isinstance(names, list)
    return str(names[0])


def model_type(config: Section) -> str:
    """Return the model_type of a configuration with a known architecture."""
    return ARCHITECTURES[architecture_of(config)]


def _architecture_problem(config: Mapping[str, object], source: str) -> Problem | None:
    names = config.get("architectures")
    kind = config.get("model_type")
    if not (isinstance(names, list) and names and isinstance(names[0], str)):
        fix = next(
            (f'add "architectures": ["{name}"]' for name, own in ARCHITECTURES.items() if own == kind), SUPPORTED
        )
        return Problem(source, "names no architecture", fix)
    name = names[0]
    if name not in ARCHITECTURES:
        code = "; the code in its auto_map is not run" if config.get("auto_map") else ""
        return Problem(source, f"architecture {shown(name)} is not supported{code}", SUPPORTED)
    if kind is not None and kind != ARCHITECTURES[name]:
        fix = f'correct one of them: the model_type of {name} is "{ARCHITECTURES[name]}"'
        return Problem(f"{source}: model_type", f"{_short(kind)} does not belong to architecture {name}", fix)
    return None


def _division_problems(config: Mapping[str, Any], keys: _Keys, source: str) -> list[Problem]:
    found = []
    for whole, parts in keys.divisions:
        value, divisor = _value(config, whole), _value(config, parts)
        own_head_size = parts == "num_attention_heads" and config.get("head_dim") is not None
        if value is not None and divisor is not None and value % divisor and not own_head_size:
            found.append(Problem(f"{source}: {whole}", f"{value} is not a multiple of {parts} {divisor}"))
    buckets, distance = (config.get(f"relative_attention_{key}") for key in ("num_buckets", "max_distance"))
    if type(buckets) is int and (buckets < 4 or (distance is not None and distance <= buckets // 2)):
        what = f"{distance} does not exceed the {buckets // 2} of {buckets} buckets for single distances"
        found.append(Problem(f"{source}: relative_attention_max_distance", what, "copy config.json again"))
    return found


def _value(config: Mapping[str, object], key: str) -> Any:
    return config.get(key, config.get(_OTHER_NAMES.get(key, key)))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
