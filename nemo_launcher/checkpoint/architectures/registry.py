# SPDX-License-Identifier: Apache-2.0
"""The registry of architectures, by name and by `model_type`."""

from __future__ import annotations

from nemo_launcher.checkpoint.architectures.architecture import Architecture
from nemo_launcher.checkpoint.architectures.bloom import BLOOM
from nemo_launcher.checkpoint.architectures.falcon import FALCON
from nemo_launcher.checkpoint.architectures.gemma import GEMMA, GEMMA2, GEMMA3
from nemo_launcher.checkpoint.architectures.gpt2 import GPT2
from nemo_launcher.checkpoint.architectures.gpt_neox import GPT_NEOX
from nemo_launcher.checkpoint.architectures.gptj import GPTJ
from nemo_launcher.checkpoint.architectures.granite import GRANITE
from nemo_launcher.checkpoint.architectures.llama import LLAMA
from nemo_launcher.checkpoint.architectures.mistral import MINISTRAL3, MISTRAL
from nemo_launcher.checkpoint.architectures.mixtures import MIXTRAL, QWEN3_MOE
from nemo_launcher.checkpoint.architectures.nemotron import NEMOTRON
from nemo_launcher.checkpoint.architectures.olmo import OLMO2, OLMO3
from nemo_launcher.checkpoint.architectures.opt import OPT
from nemo_launcher.checkpoint.architectures.phi import PHI
from nemo_launcher.checkpoint.architectures.phi3 import PHI3
from nemo_launcher.checkpoint.architectures.qwen import QWEN2, QWEN3
from nemo_launcher.checkpoint.architectures.smollm3 import SMOLLM3
from nemo_launcher.checkpoint.architectures.stablelm import STABLELM
from nemo_launcher.checkpoint.architectures.starcoder2 import STARCODER2
from nemo_launcher.checkpoint.architectures.t5 import MT5, T5, UMT5

_ALL = (
    *(GPT2, LLAMA, MISTRAL, MINISTRAL3, QWEN2, QWEN3, GEMMA, GEMMA2, GEMMA3, OLMO2, OLMO3, GRANITE, SMOLLM3, PHI3),
    *(MIXTRAL, QWEN3_MOE),
    *(STARCODER2, NEMOTRON, GPT_NEOX, PHI, STABLELM, GPTJ, FALCON, BLOOM, OPT, T5, MT5, UMT5),
)
ARCHITECTURES: dict[str, Architecture] = {architecture.name: architecture for architecture in _ALL}
"""The architectures by their names in config.json."""
KINDS: dict[str, Architecture] = {architecture.kind: architecture for architecture in _ALL}
"""The architectures by model_type."""
