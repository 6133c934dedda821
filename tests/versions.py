# SPDX-License-Identifier: Apache-2.0
"""Configurations of transformers 4 and 5, for tests that compare with either."""

from __future__ import annotations

from typing import Any

import pytest

from nemo_launcher.checkpoint.architectures.rope_keys import older_keys


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


def needs_transformers_5(why: str) -> pytest.MarkDecorator:
    """Return a mark that skips a test with transformers 4. why: what version 4 lacks, which the summary tells."""
    return pytest.mark.skipif(not is_transformers_5(), reason=f"transformers {why}")


def is_transformers_5() -> bool:
    """Return whether transformers is version 5 or later."""
    import transformers

    return int(transformers.__version__.partition(".")[0]) > 4
