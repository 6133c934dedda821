# SPDX-License-Identifier: Apache-2.0
"""Hugging Face architectures that can be converted to a base, and checks of their config.json. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nemo_launcher.checkpoint.architectures.architecture import Architecture
from nemo_launcher.checkpoint.architectures.multimodal import MULTI_MODAL
from nemo_launcher.checkpoint.architectures.registry import ARCHITECTURES, KINDS
from nemo_launcher.checkpoint.stored_tensor import shown, some_of
from nemo_launcher.config.families import FAMILIES
from nemo_launcher.errors import Problem, json_kind
from nemo_launcher.files.values import Section

CONVERTERS = {kind: FAMILIES[architecture.family].converter for kind, architecture in KINDS.items()}
"""model_type -> file below conf/conversion_hf2nemo/ that converts it."""
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""`dtype` in config.json -> name in weight files."""
SUPPORTED = f"supported: {', '.join(ARCHITECTURES)}, and the language models of {', '.join(MULTI_MODAL)}"

COMMON_KEYS = frozenset(
    (
        *("architectures", "model_type", "auto_map", "dtype", "torch_dtype", "transformers_version", "name_or_path"),
        *("initializer_range", "use_cache", "gradient_checkpointing", "chunk_size_feed_forward", "torchscript"),
        *("quantization_config", "compression_config", "num_labels", "id2label", "label2id", "problem_type"),
        *("is_decoder", "is_encoder_decoder", "cross_attention_hidden_size", "add_cross_attention", "prefix"),
        *("tie_encoder_decoder", "finetuning_task", "task_specific_params", "tokenizer_class", "pruned_heads"),
        *("use_bfloat16", "tf_legacy_loss", "attn_implementation", "output_attentions", "output_hidden_states"),
        *(
            "return_dict",
            "return_dict_in_generate",
            "output_scores",
            "model_name",
            "transformers.js_config",
            "unsloth_fixed",
            "unsloth_version",
        ),
        *("do_sample", "early_stopping", "max_length", "min_length", "num_beams", "num_beam_groups", "temperature"),
        *("top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "diversity_penalty"),
        *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences"),
        *("exponential_decay_length_penalty", "remove_invalid_values", "suppress_tokens", "begin_suppress_tokens"),
        *("forced_bos_token_id", "forced_eos_token_id", "decoder_start_token_id", "summary_type"),
        *("summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout"),
        *(f"{name}_token_id" for name in ("bos", "eos", "pad", "sep", "cls", "unk", "mask")),
    )
)
"""Keys of any architecture that describe files, texts and generation, or that are checked elsewhere."""
_LARGEST = 1 << 24
_MOST_LAYERS = 4096
_MOST_EXPERTS = 1024
MAX_LABELS = 100_000
"""The maximum number of labels: a tokenizer may be in a classifier's folder; language models have none."""
_OTHER_NAMES = {
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
    "hidden_size": "n_embed",
}
"""Alternative names of the keys of GPT-2, BLOOM and Falcon in transformers."""


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
    keys = ARCHITECTURES[architecture_of(config)]
    problems = _number_problems(config, keys, source)
    labels = config.get("num_labels")
    if labels is not None and not (type(labels) is int and 0 <= labels <= MAX_LABELS):
        what = f"{_short(labels)} is not a valid number of labels"
        problems.append(Problem(f"{source}: num_labels", what, "remove the key: a language model has no labels"))
    for key in keys.flags:
        if not isinstance(config.get(key, False), bool | None):
            problems.append(Problem(f"{source}: {key}", f"{_short(config[key])} is neither true nor false"))
    dtype = config.get("dtype", config.get("torch_dtype"))
    if dtype is not None and (not isinstance(dtype, str) or dtype.removeprefix("torch.") not in DTYPES):
        fix = f"set it to one of {', '.join(DTYPES)}"
        problems.append(Problem(f"{source}: dtype", f"{_short(dtype)} is not a supported dtype of weights", fix))
    problems = problems or _division_problems(config, keys, source)
    if not problems:
        problem = settings_problem(keys.kind, config, source)
        problems += [problem] if problem is not None else []
    return problems + _unknown_keys(config, keys, source)


def _number_problems(config: Section, keys: Architecture, source: str) -> list[Problem]:
    """Return the problems of sizes and other numbers."""
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
        elif value is not None and key.endswith("_experts") and value > _MOST_EXPERTS:
            problems.append(Problem(f"{source}: {key}", f"{value:,} experts exceed the limit of {_MOST_EXPERTS:,}"))
    for key in keys.numbers:
        value = _value(config, key)
        if value is not None and not (type(value) in (int, float) and 0 < value < math.inf):
            problems.append(Problem(f"{source}: {key}", f"{_short(value)} is not a number above 0"))
    return problems


def _unknown_keys(config: Section, keys: Architecture, source: str) -> list[Problem]:
    """Return a Problem for keys that may change what the model computes and that are not accounted for."""
    unknown = [
        key
        for key, value in config.items()
        if key not in COMMON_KEYS | keys.known and value is not None and not str(key).startswith("_")
    ]
    if not unknown:
        return []
    what = f"{len(unknown)} keys are unknown for {keys.name} and may change its results: {some_of(map(str, unknown))}"
    fix = "remove them if the model's own code does not use them, or convert another model"
    return [Problem(source, what, fix)]


def settings_problem(kind: str, config: Section, source: str) -> Problem | None:
    """Return a Problem for unsupported settings of a configuration, or None. Missing keys are not checked."""
    keys = KINDS[kind]
    found = [
        f"{key} {_short(config[key])}"
        for key, supported in keys.fixed.items()
        if config.get(key) is not None and not is_one_of(config[key], supported)
    ]
    found = list(dict.fromkeys(found + keys.problems(config)))
    if not found:
        return None
    return Problem(source, f"not supported yet: {', '.join(found)}", "use a model without it")


def is_one_of(value: object, supported: Sequence[object]) -> bool:
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in supported)


def architecture_of(config: Section) -> str:
    """Return the first architecture of a configuration that has no config_problems."""
    names = config["architectures"]
    assert isinstance(names, list)
    return str(names[0])


def model_type(config: Section) -> str:
    """Return the model_type of a configuration with a known architecture."""
    return ARCHITECTURES[architecture_of(config)].kind


def _architecture_problem(config: Mapping[str, object], source: str) -> Problem | None:
    names = config.get("architectures")
    kind = config.get("model_type")
    if not (isinstance(names, list) and names and isinstance(names[0], str)):
        fix = next(
            (f'add "architectures": ["{name}"]' for name, own in ARCHITECTURES.items() if own.kind == kind), SUPPORTED
        )
        return Problem(source, "names no architecture", fix)
    name = names[0]
    if name not in ARCHITECTURES:
        code = "; the code in its auto_map is not run" if config.get("auto_map") else ""
        return Problem(source, f"architecture {shown(name)} is not supported{code}", SUPPORTED)
    if kind is not None and kind != ARCHITECTURES[name].kind:
        fix = f'correct one of them: the model_type of {name} is "{ARCHITECTURES[name].kind}"'
        return Problem(f"{source}: model_type", f"{_short(kind)} does not belong to architecture {name}", fix)
    return None


def _division_problems(config: Mapping[str, Any], keys: Architecture, source: str) -> list[Problem]:
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


def known_keys(config: Section) -> dict[str, object]:
    """Return the keys of a configuration without config_problems that its architecture needs."""
    known = ARCHITECTURES[architecture_of(config)].known | {"architectures", "model_type"}
    return {key: value for key, value in config.items() if key in known}
