# SPDX-License-Identifier: Apache-2.0
"""`cluster.setup`: shell lines, in which `${NAME}` is a shell variable unless the configuration has that key."""

from __future__ import annotations

import re

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

# as in Hydra, a backslash escapes the reference; a key may have dots
REFERENCE = re.compile(r"\\?\$\{\s*([a-z_]\w*(?:\.\w+)*)\s*\}")


def take_setup(config: DictConfig) -> list[object] | None:
    """Remove the setup lines from a composed configuration, so that it resolves without them, and return them.

    `${base_results_dir}` and other keys of the configuration are replaced by their values; all other text is kept for
    the shell. Returns None if there is no list of lines.
    """
    cluster = config._get_node("cluster")
    if not isinstance(cluster, DictConfig) or cluster._is_none() or cluster._is_missing():
        return None
    if "setup" not in cluster:  # a cluster type without setup lines
        return None
    setup = cluster._get_node("setup")
    if not isinstance(setup, ListConfig) or setup._is_none() or setup._is_missing():
        return None
    lines = OmegaConf.to_container(setup, resolve=False)
    cluster["setup"] = []
    return [_filled(line, config) if isinstance(line, str) else line for line in lines or []]


def _filled(line: str, config: DictConfig) -> str:
    def value(reference: re.Match[str]) -> str:
        if reference[0].startswith("\\"):
            return reference[0][1:]
        try:
            found = OmegaConf.select(config, reference[1])
        except OmegaConfBaseException:
            return reference[0]
        return reference[0] if found is None or OmegaConf.is_config(found) else str(found)

    return REFERENCE.sub(value, line).replace("\\${", "${")
