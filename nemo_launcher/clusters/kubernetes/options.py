# SPDX-License-Identifier: Apache-2.0
"""The `cluster` section as an object, with the checks that its schema cannot express."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

from nemo_launcher.clusters.kubernetes.section import QUALIFIED_NAME, KubernetesSection
from nemo_launcher.errors import Problem

Object = dict[str, object]
"""A part of a manifest."""


@dataclass(frozen=True)
class Mount:
    """A volume of the pods and its mount point."""

    path: str
    """The mount point in the pods."""
    source: Object
    """The volume's source in Kubernetes' format, without a name."""
    sub_path: str | None = None
    """The part of the volume that is mounted; None for all of it."""
    read_only: bool = False
    """Whether the pods may only read it."""


class Options:
    """The section's values, with defaults for absent keys."""

    def __init__(self, section: Mapping[str, object]) -> None:
        defaults = {field.name: field.default for field in fields(KubernetesSection)}
        self._values = defaults | dict(section)

    def text(self, key: str) -> str | None:
        """Return a value as text; None for null."""
        value = self._values[key]
        return None if value is None else str(value)

    def number(self, key: str) -> int | None:
        """Return a whole number; None for null."""
        value = self._values[key]
        return value if isinstance(value, int) else None

    def flag(self, key: str) -> bool:
        """Return whether a key is True."""
        return self._values[key] is True

    def texts(self, key: str) -> list[str]:
        """Return a list of strings; empty for null."""
        value = self._values[key]
        return list(map(str, value)) if isinstance(value, list) else []

    def mapping(self, key: str) -> dict[str, str]:
        """Return a mapping of strings; empty for null."""
        value = self._values[key]
        return {str(name): str(item) for name, item in value.items()} if isinstance(value, dict) else {}

    def entries(self, key: str) -> list[Object]:
        """Return a list of sections without their null values."""
        value = self._values[key]
        found = [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []
        return [{name: item for name, item in entry.items() if item is not None} for entry in found]

    @property
    def namespace(self) -> str:
        """The namespace of the Jobs."""
        return self.text("namespace") or "default"

    def mounts(self) -> list[Mount]:
        """Return the volumes; meaningful only for entries without problems."""
        found = []
        for entry in self.entries("volumes"):
            read_only = entry.get("read_only") is True
            source: Object = {}
            if "pvc" in entry:
                source = {"persistentVolumeClaim": {"claimName": entry["pvc"], "readOnly": read_only}}
            elif "host_path" in entry:
                source = {"hostPath": {"path": entry["host_path"], "type": "Directory"}}
            elif "nfs_server" in entry:
                nfs = {"server": entry["nfs_server"], "path": entry.get("nfs_path", "/"), "readOnly": read_only}
                source = {"nfs": nfs}
            sub_path = str(entry["sub_path"]) if "sub_path" in entry else None
            found.append(Mount(os.path.normpath(str(entry.get("mount_path", ""))), source, sub_path, read_only))
        return found

    def problems(self) -> list[Problem]:
        """Return what is wrong with the section beyond the types and formats in its schema."""
        problems = []
        for number, entry in enumerate(self.entries("volumes")):
            key = f"cluster.volumes.{number}"
            sources = [name for name in ("pvc", "host_path", "nfs_server") if name in entry]
            if len(sources) != 1:
                what, fix = "exactly one of pvc, host_path and nfs_server is needed", "such as {mount_path: /a, pvc: b}"
                problems += [Problem(f"{key}.{name}", what, fix) for name in sources] or [Problem(key, what, fix)]
            if "nfs_path" in entry and "nfs_server" not in entry:
                problems.append(Problem(f"{key}.nfs_path", "has no effect without nfs_server", "add nfs_server"))
            if not str(entry.get("mount_path", "")).startswith("/"):
                problems.append(Problem(f"{key}.mount_path", "must be an absolute path", "such as /shared"))
            sub_path = str(entry.get("sub_path", ""))
            if sub_path.startswith("/") or ".." in sub_path.split("/"):
                problems.append(Problem(f"{key}.sub_path", "leads out of the volume", "name a folder inside it"))
            if any(":" in str(entry.get(name, "")) for name in ("mount_path", "nfs_path")):
                problems.append(Problem(key, "has a path with a colon, which Kubernetes cannot mount"))
        paths = [mount.path for mount in self.mounts()]
        for path in dict.fromkeys(path for path in paths if paths.count(path) > 1):
            problems.append(Problem("cluster.volumes", f"{path} is mounted twice", "mount it once"))
        for number, entry in enumerate(self.entries("env_from_secrets")):
            missing = [name for name in ("name", "secret", "key") if name not in entry]
            if missing:
                what = f"lacks {' and '.join(missing)}"
                fix = "such as {name: WANDB_API_KEY, secret: wandb, key: api-key}"
                problems.append(Problem(f"cluster.env_from_secrets.{number}", what, fix))
        if self.text("restart_policy") != "Never" and not self.number("backoff_limit"):
            what = "is OnFailure, but cluster.backoff_limit=0 ends the Job at the first failure"
            problems.append(Problem("cluster.restart_policy", what, "cluster.backoff_limit=3, or Never"))
        for name in self.mapping("node_selector"):
            if not re.fullmatch(QUALIFIED_NAME, name, re.ASCII):
                problems.append(Problem("cluster.node_selector", f"{name!r} is not a valid label name"))
        return problems
