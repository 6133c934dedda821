# SPDX-License-Identifier: Apache-2.0
"""NeMo 2 checkpoint folders as NeMo 2 writes them: `weights/` by torch, `context/` with every field of a configuration.

The form of model.yaml follows nemo/lightning/io/mixin.py (IOMixin.io_dump) of NeMo 2.2, that of io.json fiddle 0.3.1.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor
from torch.distributed import checkpoint as dcp

from nemo_launcher.checkpoint.archive import Archive
from nemo_launcher.families.base import load_base
from tests.checkpoint.pieces import stacked
from tests.engine import logits_of

MODELS = "nemo.collections.llm.gpt.model."
LLAMA = f"{MODELS}llama.LlamaConfig"
TOKENIZER = {
    "_target_": "nemo.collections.common.tokenizers.huggingface.auto_tokenizer.AutoTokenizer",
    "additional_special_tokens": [],
    "bos_token": None,
    "include_special_tokens": False,
    "pretrained_model_name": "nemo_tokenizer",
    "trust_remote_code": True,
    "use_fast": True,
}


def function(name: str) -> dict[str, Any]:
    return {"_target_": name, "_call_": False}


GPT_FIELDS: dict[str, Any] = {
    "fp16_lm_cross_entropy": False,
    "parallel_output": True,
    "share_embeddings_and_output_weights": True,
    "make_vocab_size_divisible_by": 128,
    "position_embedding_type": "learned_absolute",
    "rotary_base": 10000,
    "rotary_percent": 1.0,
    "seq_len_interpolation_factor": None,
    "seq_length": 1024,
    "attention_softmax_in_fp32": False,
    "masked_softmax_fusion": True,
    "cross_entropy_loss_fusion": True,
    "gradient_accumulation_fusion": True,
    "deallocate_pipeline_outputs": True,
    "scatter_embedding_sequence_parallel": True,
    "tp_only_amax_red": False,
    "use_transformer_engine_full_layer_spec": False,
    "transformer_layer_spec": function(f"{MODELS}base.default_layer_spec"),
    "forward_step_fn": function(f"{MODELS}base.gpt_forward_step"),
    "data_step_fn": function(f"{MODELS}base.gpt_data_step"),
    "generation_config": None,
    "vocab_size": None,
    "tp_comm_overlap_cfg": None,
}


def core_fields() -> dict[str, Any]:
    """Return the defaults of the installed megatron-core's configuration, as NeMo writes them."""
    from megatron.core.transformer.transformer_config import TransformerConfig

    return {field.name: _written(_default(field)) for field in dataclasses.fields(TransformerConfig)}


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def _written(value: Any) -> Any:
    if value is None or type(value) in (bool, int, float, str, list):
        return value
    if isinstance(value, torch.dtype):
        return function(str(value))
    if hasattr(value, "__qualname__"):
        return function(f"{inspect.getmodule(value).__name__}.{value.__qualname__}")
    return {"_target_": f"{type(value).__module__}.{type(value).__qualname__}", "_call_": True}


def fields_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of NeMo 2 for the `model_config.yaml` of a GPT or Llama."""
    activation = config["activation"].removeprefix("fast-")
    of_gate = {"geglu": "gelu", "swiglu": "silu", "reglu": "relu"}
    named = {"gelu": F.gelu, "silu": F.silu, "relu": F.relu}
    plain = of_gate.get(activation, activation)
    squared = function("nemo.collections.llm.fn.activation.squared_relu")
    same = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels")
    same += ("layernorm_epsilon", "share_embeddings_and_output_weights", "position_embedding_type", "rotary_base")
    same += ("qk_layernorm", "layernorm_zero_centered_gamma", "rotary_interleaved", "seq_len_interpolation_factor")
    same += ("window_size", "window_attn_skip_freq", "softmax_scale", "bias_activation_fusion")
    bias = config.get("bias", True)
    return {key: config[key] for key in same if key in config} | {
        "normalization": {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}[config["normalization"]],
        "activation_func": _written(named[plain]) if plain in named else squared,
        "gated_linear_unit": activation in of_gate,
        "add_bias_linear": bias,
        "add_qkv_bias": config.get("qkv_bias", False),
        "seq_length": config["encoder_seq_length"],
        "rotary_percent": config.get("rotary_percentage", 1.0),
    }


def write_nemo2(
    folder: Path,
    fields: Mapping[str, Any],
    weights: Mapping[str, Tensor] | None = None,
    *,
    kind: str = LLAMA,
    files: Mapping[str, bytes] | None = None,
    tokenizer: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint; return `folder`.

    fields: those that differ from GPTConfig's; weights: under the names of mcore, `decoder.layers.0...`.
    files: of the tokenizer, below `context/nemo_tokenizer`. tokenizer: its section.
    """
    (folder / "context").mkdir(parents=True)
    config = {"_target_": kind, **core_fields(), **GPT_FIELDS, **fields}
    model = {"_target_": f"{MODELS}llama.LlamaModel", "config": config, "model_transform": None, "optim": None}
    (folder / "context/model.yaml").write_text(yaml.safe_dump(model | {"tokenizer": dict(tokenizer or TOKENIZER)}))
    (folder / "context/io.json").write_text(json.dumps(fiddle_json(kind, fields)))
    for name, content in (files or {}).items():
        target = folder / "context/nemo_tokenizer" / name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(content)
    if weights:
        whole = stacked({f"model.{name}": weight for name, weight in weights.items()})
        save_distributed(folder / "weights", {f"module.{n.removeprefix('model.')}": t for n, t in whole.items()})
    return folder


def save_distributed(folder: Path, tensors: Mapping[str, Any]) -> None:
    """Write tensors with torch.distributed.checkpoint, and what megatron-core adds to them."""
    with warnings.catch_warnings():  # a single process needs no process group
        warnings.simplefilter("ignore")
        dcp.save(dict(tensors), storage_writer=dcp.FileSystemWriter(folder))
    torch.save({"iteration": 7}, folder / "common.pt")
    described = {"sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch"}
    (folder / "metadata.json").write_text(json.dumps(described | {"common_backend_version": 1}))


def fiddle_json(kind: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a TrainerContext with a model configuration in fiddle's JSON."""
    objects: dict[str, Any] = {}

    def value_of(name: str, value: Any) -> dict[str, Any]:
        paths = [f"<root>.model.config.{name}"]
        if isinstance(value, dict):
            module, _, last = value["_target_"].rpartition(".")
            return {"type": "pyref", "module": module, "name": last, "paths": paths}
        if not isinstance(value, list):
            return {"type": "leaf", "value": value, "paths": paths}
        items = [[f"Index(index={index})", {"type": "leaf", "value": entry}] for index, entry in enumerate(value)]
        objects[f"list_{name}"] = {"type": _reference("builtins.list"), "items": items, "metadata": None}
        return {"type": "ref", "key": f"list_{name}"}

    items = [[f"Attr(name='{name}')", value_of(name, value)] for name, value in fields.items()]
    metadata = [["Attr(name='fn_or_cls')", _reference(kind)]]
    objects["buildable_traverser_metadata_1"] = {"type": _reference("fiddle._src.config.Meta"), "items": metadata}
    objects["llama_config_1"] = {
        "type": _reference("fiddle._src.config.Config"),
        "items": items,
        "metadata": {"type": "ref", "key": "buildable_traverser_metadata_1"},
        "paths": ["<root>.model.config"],
    }
    return {"root": {"type": "ref", "key": "trainer_context_1"}, "objects": objects, "version": "0.0.1"}


def _reference(name: str) -> dict[str, str]:
    module, _, last = name.rpartition(".")
    return {"type": "pyref", "module": module, "name": last}


def edit_yaml(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "context/model.yaml"
    model = yaml.safe_load(path.read_text())
    change(model)
    path.write_text(yaml.safe_dump(model))


def tokenizer_of(base: Path) -> dict[str, bytes]:
    with Archive(base) as archive:
        names = [name for name in archive.names if name.startswith("tokenizer/")]
        return {name.removeprefix("tokenizer/"): archive.open(name).read() for name in names}


def config_of(base: Path) -> dict[str, Any]:
    with Archive(base) as archive:
        return archive.config()


def folder_of(base: Path, weights: Mapping[str, Tensor], target: Path, **changes: Any) -> Path:
    """Write the folder of a converted base; changes: fields of NeMo 2, and `kind`."""
    kind = changes.pop("kind", LLAMA)
    ours = {name.removeprefix("model."): weight for name, weight in weights.items()}
    return write_nemo2(target, fields_of(config_of(base)) | changes, ours, kind=kind, files=tokenizer_of(base))


def assert_same(folder: Path, base: Path, dtype: torch.dtype = torch.float32) -> None:
    found, wanted = load_base(folder, dtype=dtype), load_base(base, dtype=dtype)
    ids = torch.randint(3, 300, (1, 40), generator=torch.Generator().manual_seed(1))
    assert torch.equal(logits_of(found, ids), logits_of(wanted, ids))
    assert (found.fingerprint, found.num_parameters) == (wanted.fingerprint, wanted.num_parameters)
    assert found.checksum == wanted.checksum
    assert found.tokenizer.text_to_ids("Anna lives near") == wanted.tokenizer.text_to_ids("Anna lives near")
