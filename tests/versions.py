# SPDX-License-Identifier: Apache-2.0
"""Configurations of transformers 4 and 5, for tests that compare with either."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemo_launcher.checkpoint.architectures.rope_keys import older_keys
from nemo_launcher.requirements import is_at_least, is_transformers_5


def hf_config(prefix: str, **options: Any) -> Any:
    """Return the configuration of an architecture. options: its arguments, rotary positions as `rope_parameters`.

    Skips the test if the installed version does not have the architecture.
    """
    return config_class(prefix)(**in_keys_of_installed(prefix, options))


def config_class(prefix: str) -> Any:
    """Return the class of a configuration; skips the test if the installed version does not have it."""
    import transformers

    found = getattr(transformers, f"{prefix}Config", None)
    if found is None:
        pytest.skip(f"transformers {transformers.__version__} has no {prefix}")
    return found


def in_keys_of_installed(prefix: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return arguments of a configuration in the keys that the installed version reads."""
    if is_transformers_5() or "rope_parameters" not in options:
        return options
    others = {key: value for key, value in options.items() if key != "rope_parameters"}
    return others | older_keys(config_class(prefix).model_type, options)


def load_t5(folder: Path) -> Any:
    """Load a T5, MT5 or UMT5 with eager attention: that of a UMT5 in transformers 5.17 is not causal otherwise."""
    from transformers import AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM.from_pretrained(folder, attn_implementation="eager").eval()


def as_saved_by_5(folder: Path) -> Path:
    """Rewrite the files of a saved fast tokenizer as transformers 5 saves them; version 4 writes its tokens twice."""
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings.pop("added_tokens_decoder", None)
    path.write_text(json.dumps(settings))
    return folder


def needs_transformers(version: str, why: str) -> pytest.MarkDecorator:
    """Return a mark that skips a test with a version before one. why: what those lack, which the summary tells."""
    return pytest.mark.skipif(not is_at_least("transformers", version), reason=f"transformers before {version} {why}")
