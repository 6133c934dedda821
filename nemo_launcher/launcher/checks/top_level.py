# SPDX-License-Identifier: Apache-2.0
"""The keys of conf/config.yaml itself: the cluster, where scripts are, variables and keys of accounts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from nemo_launcher import places
from nemo_launcher.clusters import CLUSTERS, registry
from nemo_launcher.config.constraints import shown
from nemo_launcher.config.schema import check
from nemo_launcher.config.secret_text import hide_keys, looks_like_key
from nemo_launcher.config.sections import TopLevel
from nemo_launcher.errors import Problem, nearest
from nemo_launcher.launcher.composed import Composed
from nemo_launcher.launcher.elsewhere import is_copy, stage_of
from nemo_launcher.launcher.stages import STAGES
from nemo_launcher.launcher.suggestions import unknown_key

ENVIRONMENT_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)


def cluster_type(value: object) -> tuple[str, list[Problem]]:
    """Return the cluster type that `value` names, or the one found on this machine when it is null."""
    if value is None:
        return registry.detect(), []
    if isinstance(value, str) and value in CLUSTERS:
        return value, []
    fix = f"choose from: {registry.choices()}"
    meant = registry.meant_by(str(value)) or nearest(str(value), CLUSTERS)
    if meant is not None:
        fix = f"cluster_type={meant} ({fix})"
    return [*CLUSTERS][-1], [Problem("cluster_type", f"{shown(value)} is not a cluster type", fix)]


def check_top_level(composed: Composed, kind: str) -> list[Problem]:
    """Check the top-level keys, those of conf/config.yaml itself."""
    groups = {"stages", "cluster_type", "cluster", *STAGES}
    own = {k: v for k, v in composed.config.items() if k not in groups and not stage_of(k) and not is_copy(k)}
    problems = [p for key in [*own, "cluster"] for p in composed.unresolved.get(key, [])]
    if problems:
        return problems
    problems = check(own, TopLevel, "") + check_cluster_section(composed.config.get("cluster") or {}, kind)
    problems = [unknown_key(p.where) if p.what == "unknown key" else p for p in problems]
    return problems or _check_top_level_facts(composed.config)


def check_cluster_section(section: object, kind: str) -> list[Problem]:
    """Check the `cluster` section against this cluster type, or against any type if this one has no options."""
    found = {name: check(section, schema, "cluster") for name, schema in registry.sections()}
    fitting = min(found, key=lambda name: len(found[name]))
    if CLUSTERS[kind].section is None:
        return found[fitting]
    if len(found[fitting]) < len(found[kind]):
        what = f"has the options of {CLUSTERS[fitting].title}, but cluster_type is {kind}"
        return [Problem("cluster", what, f"cluster={kind}")]
    return found[kind]


def _check_top_level_facts(config: dict[str, Any]) -> list[Problem]:
    problems = []
    scripts = Path(config["launcher_scripts_path"])
    if scripts.name != "launcher_scripts":
        fix = f"launcher_scripts_path={scripts / 'launcher_scripts'}"
        problems.append(Problem("launcher_scripts_path", f"{scripts} does not end in launcher_scripts", fix))
    elif not scripts.is_dir():
        fix = f"leave it out: {places.LAUNCHER_SCRIPTS} is the default"
        problems.append(Problem("launcher_scripts_path", f"{scripts} does not exist", fix))
    for name in config.get("env_vars") or {}:
        if not ENVIRONMENT_NAME.fullmatch(str(name)):
            problems.append(Problem(f"env_vars.{name}", "is not a variable name", "use letters, digits and _"))
        elif name == "WANDB_API_KEY":
            what = "would be written in plain text into the job script"
            fix = "wandb_api_key_file=/path/to/file, or export it in your shell"
            problems.append(Problem("env_vars.WANDB_API_KEY", what, fix))
    key_file, key_name = config.get("wandb_api_key_file"), config.get("wandb_api_bcp_secret_key")
    problems += key_file_problems(key_file)
    if key_name is not None and (not ENVIRONMENT_NAME.fullmatch(key_name) or looks_like_key(key_name)):
        what = "must be the name of the variable that holds the key, not the key"
        problems.append(Problem("wandb_api_bcp_secret_key", what, "wandb_api_bcp_secret_key=WANDB_API_KEY"))
    return problems


def key_file_problems(key_file: str | None) -> list[Problem]:
    """Return a problem if the first line of the file cannot be a Weights & Biases key."""
    if key_file is None:
        return []
    path, fix = Path(key_file), "name a file whose first line is the key"
    if path.is_dir():
        return [Problem("wandb_api_key_file", f"{path} is a folder", fix)]
    if not path.is_file():
        return [Problem("wandb_api_key_file", f"{hide_keys(key_file)} does not exist", fix)]
    try:
        with path.open("rb") as lines:
            first = lines.readline(4096).strip()
    except OSError as error:
        return [Problem("wandb_api_key_file", f"{path}: {error.strerror}", fix)]
    return [] if first else [Problem("wandb_api_key_file", f"the first line of {path} is empty", fix)]


def keys_in_clear(config: dict[str, Any]) -> list[Problem]:
    """Return a warning for each environment variable with a value like an API key, as the job script contains it."""
    what, fix = "looks like an API key, and the job script has it in plain text", "export it in your shell instead"
    variables = config.get("env_vars") or {}
    return [Problem(f"env_vars.{name}", what, fix) for name, value in variables.items() if looks_like_key(str(value))]
