# SPDX-License-Identifier: Apache-2.0
"""What NVIDIA's launcher has and this one does not: its other stages, and a few keys, each with what does it.

A command line that names the chosen stages may set up others too, as NVIDIA's configuration does with every group;
such arguments are left out and reported once. A stage that is to run is refused with what runs it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nemo_launcher.adapters.sections import STAGES
from nemo_launcher.config.keys import type_at
from nemo_launcher.errors import Problem


@dataclass(frozen=True)
class Elsewhere:
    """A stage of NVIDIA's launcher that does not exist here."""

    title: str
    """What it does."""
    done_by: str
    """What does it instead."""

    @property
    def what(self) -> str:
        """The mistake of choosing it."""
        return f"{self.title} is not part of this system"


_BASES = "NeMo or Megatron-LM trains base models, and this system reads their .nemo archives"
_ALIGN = "NVIDIA's NeMo-Aligner and NeMo-RL do this"
_OWN_RELEASE = "NVIDIA's launcher does this in the container of its own release"
ELSEWHERE: dict[str, Elsewhere] = {
    "conversion": Elsewhere(
        "conversion of a training checkpoint to .nemo",
        "NeMo's examples/nlp/language_modeling/megatron_ckpt_to_nemo.py does this in a NeMo container; name its .nemo "
        "as model.language_model_path (conversion_hf2nemo is for Hugging Face models)",
    ),
    "external_conversion": Elsewhere(
        "conversion of other formats",
        f"{_OWN_RELEASE} (conversion_hf2nemo is for Hugging Face models)",
    ),
    "training": Elsewhere("pre-training", _BASES),
    "fine_tuning": Elsewhere("fine-tuning of all weights", "NeMo's megatron_gpt_finetuning.py does this"),
    "prompt_learning": Elsewhere("prompt learning", f"{_OWN_RELEASE}, and so does Hugging Face PEFT"),
    "peft": Elsewhere(
        "NVIDIA's peft stage (adapter_learning and ia3_learning are here)",
        "NeMo's megatron_gpt_finetuning.py does this",
    ),
    "export": Elsewhere("export to TensorRT-LLM and Triton", "NeMo's export module does this"),
    "data_curation": Elsewhere("data curation", "NVIDIA's NeMo Curator does this"),
    "rlhf_rm": Elsewhere("RLHF", _ALIGN),
    "rlhf_ppo": Elsewhere("RLHF", _ALIGN),
    "steerlm_reg": Elsewhere("SteerLM", _ALIGN),
    "ptq": Elsewhere("quantisation", "NVIDIA's TensorRT Model Optimizer does this"),
    "quantization": Elsewhere("quantisation", "NVIDIA's TensorRT Model Optimizer does this"),
    "fw_inference": Elsewhere("inference with a framework's server", _OWN_RELEASE),
    "rag_indexing": Elsewhere("retrieval", _OWN_RELEASE),
    "rag_generating": Elsewhere("retrieval", _OWN_RELEASE),
    "generic": Elsewhere("a stage of any command", "a job script of your own does this"),
    "custom_callbacks": Elsewhere("custom callbacks", _OWN_RELEASE),
}
"""The stages of NVIDIA's launcher, releases 23.05 to 24.05, that do not exist here."""

_SEVERAL = "a job runs once; several runs are a sweep, as in: -m adapter_learning.model.seed=1,2,3,4"
KEYS = {"run.array": _SEVERAL, "cluster.array": _SEVERAL}
"""The ends of keys without a counterpart here, and what to do instead."""
_COPY = "_config"


def stage_of(key: str) -> str | None:
    """Return the stage of NVIDIA's that a full key belongs to; None for any other key. Its `*_config` is a copy."""
    name = key.partition(".")[0].removesuffix(_COPY)
    return name if name in ELSEWHERE else None


def is_copy(key: str) -> bool:
    """Return whether a top-level key is NVIDIA's copy of a choice, such as adapter_learning_config."""
    name = key.removesuffix(_COPY)
    return name != key and (name in ELSEWHERE or name in STAGES)


def without_other_stages(arguments: Sequence[str]) -> tuple[list[str], list[Problem]]:
    """Return a command line without the settings of NVIDIA's other stages, and a warning that names them.

    Without `stages` they stay, and are mistakes: the user may expect one of these stages to run.
    """
    chosen = [argument for argument in arguments if argument.startswith("stages=")]
    if not chosen:
        return list(arguments), []
    running = re.findall(r"\w+", chosen[-1].partition("=")[2])
    kept, without_effect = [], []
    for argument in arguments:
        key, _, value = argument.lstrip("+~").partition("=")
        if not _is_left_out(key):
            kept.append(argument)
        elif value not in ("", "null") and stage_of(key) not in running and not argument.startswith("~"):
            without_effect.append(key)
    return kept, ignored_stages(without_effect)


def other_stages(config: Mapping[str, object]) -> list[str]:
    """Return the sections of NVIDIA's other stages in a composed configuration."""
    return [key for key, section in config.items() if stage_of(key) and not is_copy(key) and section]


def ignored_stages(keys: Iterable[str]) -> list[Problem]:
    """Return one warning about settings of NVIDIA's other stages, which no chosen stage reads; empty without any."""
    first, *more = [*dict.fromkeys(keys)] or [""]
    if not first:
        return []
    what = f"has no effect: {ELSEWHERE[stage_of(first) or first].what}"
    return [Problem(first, what + (f"; nor have {', '.join(more)}" if more else ""), "leave it out")]


def _is_left_out(key: str) -> bool:
    """Return whether a key on the command line sets up another stage of NVIDIA's, or copies a choice."""
    if stage_of(key) is None:
        return is_copy(key)
    below = key.partition(".")[2]  # of conversion_hf2nemo, which NVIDIA's conversion does not have
    return not below.startswith("model.") or type_at(STAGES["conversion_hf2nemo"], below.split(".")) is None


def instead_of(key: str) -> str | None:
    """Return what to do instead of a key that has no counterpart; None for any other key."""
    return next((instead for end, instead in KEYS.items() if f".{key}".endswith(f".{end}")), None)
