# SPDX-License-Identifier: Apache-2.0
"""A NeMo 2 model configuration as the settings of `model_config.yaml`. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nemo_launcher.checkpoint.model_config import MAX_LAYERS
from nemo_launcher.checkpoint.nemo2_fields import (
    ACTIVATIONS,
    CLASSES,
    FIXED,
    FUNCTIONS,
    HARMLESS,
    NORMALIZATIONS,
    OTHERS,
    RENAMED,
    REQUIRED,
    SAME,
    SCALED,
    SCALING,
)
from nemo_launcher.errors import Problem
from nemo_launcher.files.values import Section

TARGET = "_target_"
"""The key with the name of a class or function in NeMo 2's YAML. The name is compared, never imported."""
_EXPORT = (
    "export the model in NeMo 2 (llm.export_ckpt with target='hf') and convert that folder with "
    "stages=[conversion_hf2nemo]"
)


def target_of(value: object) -> str:
    """Return the name of the class or function that a value stands for; empty for other values."""
    name = value.get(TARGET) if isinstance(value, Mapping) else None
    return name if isinstance(name, str) else ""


@dataclass(slots=True)
class ModelSettings:
    """The settings of a model configuration, and the problems found in it."""

    fields: Section
    """The configuration: the `config` section of NeMo 2's model.yaml."""
    where: str
    """Its place, for messages."""
    problems: list[Problem] = field(default_factory=list)
    """Classes, fields and values that are not supported."""

    def read(self) -> dict[str, object]:
        """Return the keys of `model_config.yaml`; the values' types are not checked yet."""
        kind = target_of(self.fields)
        if CLASSES.fullmatch(kind) is None:
            what = f"{kind[:100]!r} is not supported; GPTConfig and those of Llama, Mistral, Qwen and Nemotron are"
            self.problems.append(Problem(f"{self.where}{TARGET}", what, _EXPORT))
            return {}
        is_scaled = SCALED.fullmatch(kind) is not None
        self._check(read=set(SCALING) if is_scaled else set())
        settings: dict[str, object] = {key: self.fields.get(key) for key in SAME}
        settings |= {ours: self.fields.get(theirs) for theirs, ours in RENAMED.items()}
        settings |= self._layers() | self._activation() | self._window()
        if is_scaled:
            settings |= {key: self.fields.get(key) for key in SCALING} | {"scale_positional_embedding": True}
        return {key: value for key, value in settings.items() if value is not None}

    def _check(self, read: set[str]) -> None:
        """Add a problem for each field that is absent, or neither read nor known to change nothing."""
        absent = [name for name in (*REQUIRED, *sorted(read)) if name not in self.fields]
        what, fix = "is absent, but NeMo 2 writes every field", "copy the folder again"
        self.problems += [Problem(f"{self.where}{name}", what, fix) for name in absent]
        known = read | {*SAME, *RENAMED, *OTHERS, TARGET}
        for name, value in self.fields.items():
            if name in FIXED:
                fits, fix = value in FIXED[name], f"supported: {FIXED[name][0]!r}; or {_EXPORT}"
            elif name in FUNCTIONS:
                fits, fix = value is None or target_of(value) in FUNCTIONS[name], f"supported: {FUNCTIONS[name][0]}"
            else:  # an unknown option of another release must be off
                is_known = name in known or HARMLESS.fullmatch(name) is not None
                fits, fix = is_known or value is None or value is False, _EXPORT
            if not fits:
                self._refuse(name, value, fix)

    def _layers(self) -> dict[str, object]:
        name = self.fields.get("normalization")
        if not isinstance(name, str) or name not in NORMALIZATIONS:
            self._refuse("normalization", name, f"supported: {', '.join(NORMALIZATIONS)}")
            name = next(iter(NORMALIZATIONS))
        length = self.fields.get("seq_length")
        is_half = [key for key in ("bf16", "fp16") if self.fields.get(key) is True]
        return {
            "mcore_gpt": True,
            "precision": {"bf16": "bf16", "fp16": "16"}[is_half[0]] if is_half else "32",
            "normalization": NORMALIZATIONS[name],
            "encoder_seq_length": length,
            "max_position_embeddings": length,
        }

    def _activation(self) -> dict[str, object]:
        function, gated = self.fields.get("activation_func"), self.fields.get("gated_linear_unit")
        name = ACTIVATIONS.get(target_of(function), (None, None))[bool(gated)]
        if name is None:
            gates = [pair[bool(gated)] for pair in ACTIVATIONS.values()]
            fix = ", ".join(name for name, gate in zip(ACTIVATIONS, gates, strict=True) if gate is not None)
            self._refuse("activation_func", function, f"supported {'with' if gated else 'without'} a gate: {fix}")
        return {"activation": name}

    def _window(self) -> dict[str, object]:
        """Return the attention window and the layers that have it, one number for each layer.

        Source: megatron-core 0.16, is_layer_window_attention: no pattern means every layer, a number n every layer but
        each n-th.
        """
        window, pattern = self.fields.get("window_size"), self.fields.get("window_attn_skip_freq")
        if window is None:
            return {}
        sizes = window if isinstance(window, list) else []
        if len(sizes) != 2 or not all(isinstance(size, int) for size in sizes) or sizes[1] not in (0, -1):
            self._refuse("window_size", window, "supported: null or [tokens before the own one, 0]")
            return {}
        if sizes[0] < 0:
            return {}
        count = self.fields.get("num_layers")
        layers = range(1, count + 1 if isinstance(count, int) and count <= MAX_LAYERS else 1)
        if isinstance(pattern, int) and not isinstance(pattern, bool) and pattern > 0:
            pattern = [int(layer % pattern != 0) for layer in layers]
        return {"window_size": sizes, "window_attn_skip_freq": [1 for _ in layers] if pattern is None else pattern}

    def _refuse(self, name: str, value: object, fix: str) -> None:
        shown = target_of(value) or value
        text = repr(shown) if isinstance(shown, (str, int, float, type(None))) else f"a {type(shown).__name__}"
        self.problems.append(Problem(f"{self.where}{name[:100]}", f"{text[:100]} is not supported", fix))
