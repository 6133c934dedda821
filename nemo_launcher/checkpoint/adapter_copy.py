# SPDX-License-Identifier: Apache-2.0
"""The safetensors copy of an adapter: its tensors, and its configuration as JSON in the file's metadata.

Imports no torch, for use in the launcher.
"""

from __future__ import annotations

from pathlib import Path

from nemo_launcher.checkpoint.model_config import checked_config
from nemo_launcher.checkpoint.safetensors_file import read_metadata
from nemo_launcher.errors import Problem, UserError, json_kind
from nemo_launcher.files.foreign import parse_json

SUFFIX = ".safetensors"
CONFIG_KEY = "model_config"
"""The key of the metadata with the configuration."""


def is_copy(path: Path) -> bool:
    """Return whether a path is a safetensors file with an adapter's configuration. Raises UserError if damaged."""
    return path.suffix == SUFFIX and path.is_file() and CONFIG_KEY in read_metadata(path)


def read_copy_config(path: Path) -> dict[str, object]:
    """Return the configuration in a copy. Raises UserError if it is malformed or has keys of the wrong type."""
    source = f"{path}: {CONFIG_KEY}"
    config = parse_json(read_metadata(path)[CONFIG_KEY], source)
    if not isinstance(config, dict):
        raise UserError(Problem(source, f"is {json_kind(config)}, not an object", "use another copy of the adapter"))
    return checked_config(config, str(path))
