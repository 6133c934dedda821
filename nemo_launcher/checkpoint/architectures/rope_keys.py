# SPDX-License-Identifier: Apache-2.0
"""`rope_parameters` of transformers 5 and the keys of transformers 4 for the same rotary positions. Imports no torch.

transformers 5 reads both; transformers 4 ignores `rope_parameters`, and its configurations do not have them.
"""

from __future__ import annotations

from collections.abc import Mapping

from nemo_launcher.files.values import Section, below

_LAYERED = {"gemma3_text": "rope_local_base_freq", "olmo3": "rope_theta"}
"""model_type with a section for each type of layer -> the older key of the base in layers with a window."""
_NEOX = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
_COUNTED = ("olmo2", "phi3")
"""model_types whose rope_scaling may have no more keys than transformers 4 knows, which is `type` of the names."""
_WITH_LENGTH = "phi3"
"""The model_type whose original length is not in the section."""
_LENGTH = "original_max_position_embeddings"


def older_keys(kind: str, config: Section) -> dict[str, object]:
    """Return the keys of transformers 4 that say what `rope_parameters` of a configuration do; none without them."""
    section = config.get("rope_parameters")
    if not isinstance(section, Mapping):
        return {}
    keys: dict[str, object] = {}
    if "full_attention" in section or "sliding_attention" in section:
        base = below(section, "sliding_attention").get("rope_theta")
        keys = {_LAYERED[kind]: base} if kind in _LAYERED and base is not None else {}
        section = below(section, "full_attention")
    own = _NEOX if kind == "gpt_neox" else {name: name for name in _NEOX}
    keys |= {theirs: section[name] for name, theirs in own.items() if section.get(name) is not None}
    scaling = {key: value for key, value in section.items() if key not in (*_NEOX, "type", "rope_type")}
    if kind == _WITH_LENGTH and scaling.get(_LENGTH) is not None:
        keys[_LENGTH] = scaling.pop(_LENGTH)
    name = section.get("rope_type", section.get("type", "default"))
    if name == "default":
        return keys
    names = {"type": name} if kind in _COUNTED else {"type": name, "rope_type": name}
    return keys | {"rope_scaling": {**names, **scaling}}


def rope_parameters(kind: str, config: Section) -> dict[str, object] | None:
    """Return `rope_parameters` for a complete configuration of transformers 4; None without rotary positions."""
    theta = config.get("rope_theta")
    if theta is None:
        return None
    scaling = below(config, "rope_scaling")
    rope: dict[str, object] = {key: value for key, value in scaling.items() if key != "type"}
    rope |= {"rope_type": scaling.get("rope_type", scaling.get("type", "default")), "rope_theta": theta}
    if config.get("partial_rotary_factor") is not None:
        rope["partial_rotary_factor"] = config["partial_rotary_factor"]
    if kind == _WITH_LENGTH and rope["rope_type"] == "longrope":
        rope[_LENGTH] = config.get(_LENGTH)
    if kind not in _LAYERED:
        return rope
    sliding: dict[str, object] = {"rope_type": "default", "rope_theta": config.get(_LAYERED[kind])}
    return {"full_attention": rope, "sliding_attention": sliding}
