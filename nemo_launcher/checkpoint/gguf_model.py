# SPDX-License-Identifier: Apache-2.0
"""The model in a GGUF file, as a Hugging Face configuration and tensor names. Imports no torch.

Sources: llama.cpp, gguf-py/gguf/constants.py (keys and tensor names) and convert_hf_to_gguf.py (rope_freqs).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nemo_launcher.checkpoint.gguf_file import GGUFFile, read_gguf
from nemo_launcher.checkpoint.gguf_rope import rope_parameters
from nemo_launcher.checkpoint.gguf_tokens import token_problems
from nemo_launcher.checkpoint.hf_architectures import config_problems
from nemo_launcher.checkpoint.stored_tensor import StoredTensor, shown, some_of
from nemo_launcher.errors import Problem, UserError

ROPE_FREQUENCIES = "rope_freqs.weight"
_LLAMA_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "model.layers.{}.input_layernorm",
    "attn_q": "model.layers.{}.self_attn.q_proj",
    "attn_k": "model.layers.{}.self_attn.k_proj",
    "attn_v": "model.layers.{}.self_attn.v_proj",
    "attn_output": "model.layers.{}.self_attn.o_proj",
    "ffn_norm": "model.layers.{}.post_attention_layernorm",
    "ffn_gate": "model.layers.{}.mlp.gate_proj",
    "ffn_up": "model.layers.{}.mlp.up_proj",
    "ffn_down": "model.layers.{}.mlp.down_proj",
}
_GPT2_NAMES = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "attn_norm": "transformer.h.{}.ln_1",
    "attn_qkv": "transformer.h.{}.attn.c_attn",
    "attn_output": "transformer.h.{}.attn.c_proj",
    "ffn_norm": "transformer.h.{}.ln_2",
    "ffn_up": "transformer.h.{}.mlp.c_fc",
    "ffn_down": "transformer.h.{}.mlp.c_proj",
}
# general.architecture -> Hugging Face's architecture, tensor names
_ARCHITECTURES = {
    "llama": ("LlamaForCausalLM", _LLAMA_NAMES),
    "qwen2": ("Qwen2ForCausalLM", _LLAMA_NAMES),
    "gpt2": ("GPT2LMHeadModel", _GPT2_NAMES),
}
_NAME = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)")
# Keys below the architecture's name that are read, and those that do not affect the computation.
_READ = (
    *("context_length", "embedding_length", "block_count", "feed_forward_length", "vocab_size"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
    *("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "rope.dimension_count", "rope.freq_base"),
    *("rope.scaling.type", "rope.scaling.factor", "rope.scale_linear", "rope.scaling.original_context_length"),
    *("rope.scaling.finetuned", "rope.scaling.attn_factor", "rope.scaling.yarn_log_multiplier"),
    *("tensor_data_layout", "attention.causal"),
)
_NEUTRAL: tuple[object, ...] = (0, 0.0, False, None)
"""Values at which an unread key has no effect (expert_count 0 ...)."""


@dataclass(frozen=True, slots=True)
class GGUFModel:
    """A GGUF file as a Hugging Face model."""

    path: Path
    """The file."""
    config: dict[str, object]
    """The content of an equivalent config.json."""
    tensors: dict[str, StoredTensor]
    """The tensors by Hugging Face's names."""
    metadata: dict[str, object]
    """The file's own metadata by key."""


def read_model(path: Path) -> GGUFModel:
    """Return the model in a GGUF file. Raises UserError with everything that prevents its conversion."""
    file = read_gguf(path)
    metadata, source = file.metadata, str(path)
    kind = _checked_kind(file)
    architecture, names = _ARCHITECTURES[kind]
    problems = [
        Problem(f"{source}: {shown(key)}", f"{str(value)[:60]!r} is not supported", "use another file of the model")
        for key, value in metadata.items()
        if key.startswith(f"{kind}.") and key.removeprefix(f"{kind}.") not in _READ and value not in _NEUTRAL
    ]
    tensors = _renamed(file.tensors, names, problems, source)
    config = _config(file, kind, problems) | {"architectures": [architecture]}
    config["tie_word_embeddings"] = "output.weight" not in file.tensors
    problems += config_problems(config, source)
    problems += token_problems(metadata, config.get("vocab_size"), source)
    if problems:
        raise UserError(problems)
    return GGUFModel(path, config, tensors, metadata)


def _checked_kind(file: GGUFFile) -> str:
    """Return the architecture's name. Raises UserError if the file is not a complete language model."""
    metadata, source = file.metadata, str(file.path)
    parts = metadata.get("split.count", 1)
    if parts != 1:
        what = f"is part {_plus_one(metadata.get('split.no'))} of {parts}"
        merged = re.sub(r"-\d{5}-of-\d{5}", "", file.path.stem) + "-merged.gguf"
        fix = f"merge the parts: llama-gguf-split --merge {file.path.name} {merged} (give the first part)"
        raise UserError(Problem(source, what, fix))
    form = metadata.get("general.type", "model")
    if form != "model":
        raise UserError(
            Problem(source, f"its type is {str(form)[:40]!r}, not a model", "give the path of the model's file")
        )
    kind = metadata.get("general.architecture")
    if not isinstance(kind, str) or kind not in _ARCHITECTURES:
        what = f"architecture {shown(str(kind))} is not supported" if kind else "names no architecture"
        raise UserError(Problem(source, what, f"supported as GGUF: {', '.join(_ARCHITECTURES)}"))
    if not file.tensors:
        raise UserError(Problem(source, "holds no weights", "give the path of the model's file, not of its vocabulary"))
    return kind


def _plus_one(number: object) -> int | str:
    return number + 1 if isinstance(number, int) else "?"


def _renamed(
    tensors: Mapping[str, StoredTensor], names: Mapping[str, str], problems: list[Problem], source: str
) -> dict[str, StoredTensor]:
    renamed: dict[str, StoredTensor] = {}
    strange = []
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        theirs = names.get(match[2]) if match else None
        if name == ROPE_FREQUENCIES:
            continue
        if match is None or theirs is None or ("{}" in theirs) != (match[1] is not None):
            strange.append(name)
        else:
            renamed[f"{theirs.format(match[1])}.{match[3]}"] = tensor
    if strange:
        what = f"{len(strange)} tensors do not exist in the architecture: {some_of(strange)}"
        problems.append(Problem(source, what, "use another file of the model"))
    return renamed


def _config(file: GGUFFile, kind: str, problems: list[Problem]) -> dict[str, object]:
    def read(key: str) -> object:
        return file.metadata.get(f"{kind}.{key}")

    embedding = file.tensors.get("token_embd.weight")
    config: dict[str, object] = {
        "vocab_size": embedding.shape[0] if embedding is not None else None,
        "dtype": "float32",
    }
    for token in ("bos", "eos"):
        config[f"{token}_token_id"] = file.metadata.get(f"tokenizer.ggml.{token}_token_id")
    if kind == "gpt2":
        return config | {
            "n_positions": read("context_length"),
            "n_embd": read("embedding_length"),
            "n_layer": read("block_count"),
            "n_inner": read("feed_forward_length"),
            "n_head": read("attention.head_count"),
            "layer_norm_epsilon": _required(file, f"{kind}.attention.layer_norm_epsilon", problems),
        }
    heads, hidden = read("attention.head_count"), read("embedding_length")
    derived = hidden // heads if type(heads) is int and type(hidden) is int and heads > 0 else None
    head_dim = read("attention.key_length") or read("rope.dimension_count") or derived
    for key in ("attention.value_length", "rope.dimension_count"):
        if read(key) not in (None, head_dim):
            what = f"{read(key)!r} is not the size of a head, {head_dim!r}"
            problems.append(Problem(f"{file.path}: {kind}.{key}", what, "use another file of the model"))
    config |= {
        "max_position_embeddings": read("context_length"),
        "hidden_size": hidden,
        "intermediate_size": read("feed_forward_length"),
        "num_hidden_layers": read("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": heads if read("attention.head_count_kv") is None else read("attention.head_count_kv"),
        "rms_norm_eps": _required(file, f"{kind}.attention.layer_norm_rms_epsilon", problems),
    }
    if head_dim != derived or kind == "llama":
        config["head_dim"] = head_dim
    if type(head_dim) is int and head_dim > 0:
        try:
            config["rope_parameters"] = rope_parameters(file, kind, head_dim)
        except UserError as error:
            problems += error.problems
    return config


def _required(file: GGUFFile, key: str, problems: list[Problem]) -> object:
    value = file.metadata.get(key)
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        problems.append(Problem(f"{file.path}: {key}", "is absent or not finite", "use another file of the model"))
        return None
    return value
