# SPDX-License-Identifier: Apache-2.0
"""What a folder or archive is that holds no model_config.yaml, and the way out. Imports no torch."""

from __future__ import annotations

from collections.abc import Set

from nemo_launcher.errors import Problem

_NEMO_2 = (
    "export it in NeMo 2 (llm.export_ckpt(path=..., target='hf', output_path=...)) and convert that folder with "
    "stages=[conversion_hf2nemo]"
)
_LEARNED = "name a .nemo: a base, or the adapter that a learning stage of this launcher or of NeMo 1 wrote"


def other_form_problem(names: Set[str], source: str, config_name: str) -> Problem:
    """Return what to tell of an archive without its configuration; names: of the files in it."""
    what, fix = _recognised(names)
    return Problem(source, f"holds no {config_name}: {what}", fix)


def _recognised(names: Set[str]) -> tuple[str, str]:
    """Return what the files are by their names, and what to do."""
    last = {name.rpartition("/")[2] for name in names}
    if "adapter_metadata.json" in last:
        return "it is an adapter of NeMo 2, which is not read", _LEARNED
    if any(name.startswith("context/") for name in names):
        return "it is a checkpoint of NeMo 2 (context/ and weights/), which is not read", _NEMO_2
    if "adapter_config.json" in names:
        return "it is a PEFT adapter of Hugging Face's, which is not read", _LEARNED
    if "latest_checkpointed_iteration.txt" in names:
        fix = "convert the model's Hugging Face folder with stages=[conversion_hf2nemo]"
        return "it is a checkpoint of Megatron-LM's own training, which is not read", fix
    if any(name.endswith(".distcp") for name in names):
        fix = "name the .nemo or the folder with model_config.yaml and model_weights/; if it is of NeMo 2: "
        return "it is the weights of a distributed checkpoint alone", fix + _NEMO_2
    return "it is not a NeMo checkpoint", ""
