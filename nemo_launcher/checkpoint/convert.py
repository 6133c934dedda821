"""conversion_hf2nemo: a Hugging Face folder or a GGUF file becomes a `.nemo` base checkpoint, tokenizer inside."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nemo_launcher.checkpoint import hf_gpt2, hf_llama, hf_t5
from nemo_launcher.checkpoint.archive import TOKENIZER_FOLDER, WEIGHTS_NAME, Writer, read_config, write_archive
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.precision import dtype_of
from nemo_launcher.quiet import quiet_libraries

# Architecture named in a Hugging Face config -> the module that maps its configuration and weights.
FAMILIES: dict[str, Any] = {
    **dict.fromkeys(hf_gpt2.ARCHITECTURES, hf_gpt2),
    **dict.fromkeys(hf_llama.ARCHITECTURES, hf_llama),
    **dict.fromkeys(hf_t5.ARCHITECTURES, hf_t5),
}


def convert(source: Path, target: Path, precision: str | int | None = None) -> bool:
    """Convert `source` (a Hugging Face folder or a .gguf file) to the `.nemo` file `target`.

    precision: of the stored weights, null for that of the source (GGUF: 32, which holds its values exactly). Returns
    False when `target` was made from the same source before and is left as it is. Raises UserError when the source is
    absent or of an architecture that is not supported.
    """
    _check_source(source)
    stamp = {"file": source.name, "sha256": _digest(source), "precision": None if precision is None else str(precision)}
    if target.exists() and read_config(target).get("converted_from") == stamp:
        print(f"{target} was made from {source} before: nothing to do", flush=True)
        return False
    model, tokenizer = _load(source)
    family = FAMILIES[model.config.architectures[0]]
    theirs = model.state_dict()
    weights = family.convert_weights(theirs, model.config)
    dtype = model.dtype if precision is None else dtype_of(precision, "model.precision")
    print(f"writing {target} ({sum(w.numel() for w in weights.values()) / 1e6:.1f}M weights, {dtype})", flush=True)
    weights = {name: weight.to(dtype).contiguous() for name, weight in weights.items()}
    stored = family.to_stored(weights, model.config)
    tokenizer_section = {"library": "huggingface", "type": f"nemo:{TOKENIZER_FOLDER}", "use_fast": True}
    config = family.nemo_config(model.config, theirs) | {
        "micro_batch_size": 1,
        "global_batch_size": 1,
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "tokenizer": tokenizer_section | family.tokenizer_section(tokenizer),
        "precision": {torch.float32: 32, torch.bfloat16: "bf16", torch.float16: 16}[dtype],
        "target": family.TARGET,
        "converted_from": stamp,
    }
    members: dict[str, Writer | bytes] = dict(_tokenizer_files(tokenizer))
    members[WEIGHTS_NAME] = lambda stream: torch.save(stored, stream)
    write_archive(target, config, members)
    return True


def _check_source(source: Path) -> None:
    key = "model.hf_model_path"
    if not source.exists():
        raise UserError(Problem(key, f"no such file or folder: {source}"))
    if source.is_file() and source.suffix != ".gguf":
        raise UserError(Problem(key, f"{source} is no .gguf file", "name a .gguf file or a Hugging Face folder"))
    if source.is_dir() and not (source / "config.json").is_file():
        raise UserError(Problem(key, f"{source} holds no config.json", "name the folder that config.json is in"))


def _load(source: Path) -> tuple[Any, Any]:
    """Return the transformers model (CPU, its own precision) and tokenizer."""
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet_libraries()
    print(f"reading {source}", flush=True)
    if source.is_dir():
        family = FAMILIES[_check_architecture(source, json.loads((source / "config.json").read_text()))]
        model = getattr(transformers, family.MODEL_LOADER).from_pretrained(source, dtype="auto")
        tokenizer = AutoTokenizer.from_pretrained(source)
    else:
        options = {"gguf_file": source.name}
        model = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **options)
        tokenizer = AutoTokenizer.from_pretrained(source.parent, **options)
        model.config.architectures = [type(model).__name__]
    _check_architecture(source, model.config.to_dict())
    wrong = FAMILIES[model.config.architectures[0]].unsupported(model.config)
    if wrong:
        raise UserError(Problem(str(source), f"not supported yet: {', '.join(wrong)}"))
    return model, tokenizer


def _check_architecture(source: Path, config: Mapping[str, Any]) -> str:
    """Return the architecture that a configuration names; UserError when no family has it."""
    architecture = (config.get("architectures") or ["?"])[0]
    if architecture not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise UserError(Problem(str(source), f"architecture {architecture} is not supported", f"supported: {known}"))
    return str(architecture)


def _tokenizer_files(tokenizer: Any) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {f"{TOKENIZER_FOLDER}/{path.name}": path.read_bytes() for path in sorted(Path(folder).iterdir())}


def _digest(source: Path) -> str:
    """Return the SHA-256 over the source's files, in the order of their names."""
    files = [source] if source.is_file() else sorted(path for path in source.iterdir() if path.is_file())
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
