# SPDX-License-Identifier: Apache-2.0
"""Identification of a folder or archive without model_config.yaml, with advice. Imports no torch."""

from __future__ import annotations

from collections.abc import Set

from nemo_launcher.checkpoint.nemo2 import MODEL
from nemo_launcher.errors import Problem

_NEMO_2 = (
    "export it in NeMo 2 (llm.export_ckpt(path=..., target='hf', output_path=...)) and convert that folder with "
    "stages=[conversion_hf2nemo]"
)
_ABOVE = "give the path of the folder that contains context/ and weights/"
_LEARNED = "use a .nemo: a base, or an adapter written by a learning stage of this launcher or by NeMo 1"


def unknown_format_problem(names: Set[str], source: str, config_name: str) -> Problem:
    """Return the Problem for an archive without its configuration; names: of its files."""
    what, fix = _identified(names)
    return Problem(source, f"holds no {config_name}: {what}", fix)


def _identified(names: Set[str]) -> tuple[str, str]:
    """Return the format implied by the files' names, and advice."""
    last = {name.rpartition("/")[2] for name in names}
    if "adapter_metadata.json" in last:
        return "it is an adapter of NeMo 2, which is not supported", _LEARNED
    if MODEL in names:
        fix = "unpack it and give the path of the folder that contains context/ and weights/"
        return "it is an archive of a NeMo 2 checkpoint, which is a folder", fix
    if any(name.startswith("context/") for name in names):
        what = "it is a checkpoint of NeMo 2 without context/model.yaml, which describes the model"
        return what, f"copy the folder again, or load and save it in NeMo 2.0 or later; or {_NEMO_2}"
    if {"model.yaml", "io.json"} <= names:
        return "it is the context/ folder of a NeMo 2 checkpoint", _ABOVE
    if "adapter_config.json" in names:
        fix = "nemo-launcher import FOLDER --base BASE.nemo --output ADAPTER.nemo makes a .nemo of it"
        return "it is an adapter of PEFT or AdapterHub", fix
    if "latest_checkpointed_iteration.txt" in names:
        fix = "convert the model's Hugging Face folder with stages=[conversion_hf2nemo]"
        return "it is a checkpoint of Megatron-LM, which is not supported", fix
    if any(name.endswith(".distcp") for name in names):
        fix = "give the path of the .nemo or of the folder with model_config.yaml and model_weights/; for NeMo 2, "
        return "it is only the weights of a distributed checkpoint", fix + _ABOVE
    return "it is not a NeMo checkpoint", ""
