# SPDX-License-Identifier: Apache-2.0
"""A fake Kubernetes: kubectl.py as its client, and pods that run as local processes on request."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LABEL = "nemo-adapter-launcher/job"


@dataclass(frozen=True)
class FakeKubernetes:
    """The state of the stand-in; namespaces are default and team."""

    state: Path

    def calls(self, verb: str) -> list[list[str]]:
        """Return the arguments of every call of a verb."""
        path = self.state / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [call for call in map(json.loads, lines) if verb in call]

    def jobs(self, namespace: str = "default") -> dict[str, Any]:
        """Return the existing Jobs by name."""
        return {path.stem: json.loads(path.read_text()) for path in (self.state / namespace / "job").glob("*.json")}

    def services(self, namespace: str = "default") -> list[str]:
        """Return the names of the existing Services."""
        return sorted(path.stem for path in (self.state / namespace / "service").glob("*.json"))

    def set(self, name: str, status: dict[str, Any], *pods: dict[str, Any], namespace: str = "default") -> None:
        """Set a Job's status and its pods' statuses."""
        path = self.state / namespace / "job" / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"status": status}))
        folder = self.state / namespace / "pod"
        folder.mkdir(exist_ok=True)
        for old in folder.glob(f"{name}-*.json"):
            old.unlink()
        for index, pod in enumerate(pods):
            metadata = {"name": f"{name}-{index}-abcde", "labels": {LABEL: name}}
            (folder / f"{name}-{index}.json").write_text(
                json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": pod})
            )

    def condition(self, name: str, kind: str, reason: str = "", *, namespace: str = "default") -> None:
        """Mark a Job as ended: Complete or Failed."""
        self.set(name, {"conditions": [{"type": kind, "status": "True", "reason": reason}]}, namespace=namespace)

    def run(self, name: str, *, namespace: str = "default", attempts: int = 5) -> list[int]:
        """Run a Job's pods to the end like the Job controller; return the exit statuses of all containers.

        A pod is replaced if its container ends with a status that the failure policy ignores.
        """
        job = self.jobs(namespace)[name]
        spec = job["spec"]
        rules = (spec.get("podFailurePolicy") or {"rules": []})["rules"]
        ignored = [value for rule in rules for value in rule.get("onExitCodes", {}).get("values", [])]
        ran: list[int] = []
        waiting = list(range(spec["completions"]))
        while waiting and attempts:
            attempts -= 1
            pod = spec["template"]["spec"]
            with ThreadPoolExecutor(len(waiting)) as nodes:  # ranks wait for each other
                statuses = nodes.map(lambda index, pod=pod: self._run_pod(pod, index, ran), waiting)
            ended = dict(zip(waiting, statuses, strict=True))
            failed = [status for status in ended.values() if status and status not in ignored]
            if failed:
                self.condition(name, "Failed", "BackoffLimitExceeded", namespace=namespace)
                return ran
            waiting = [index for index, status in ended.items() if status]
        self.condition(name, "Complete", namespace=namespace)
        return ran

    def _run_pod(self, pod: dict[str, Any], index: int, ran: list[int]) -> int:
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            process = self.start_container(container, index)
            process.communicate(timeout=120)
            ran.append(process.returncode)
            if process.returncode:
                return process.returncode
        return 0

    def start_container(self, container: dict[str, Any], index: int) -> subprocess.Popen[str]:
        """Start a container's command with its environment; secrets are `secret:NAME/KEY`."""
        given: dict[str, str] = {}
        for entry in container["env"]:
            given[entry["name"]] = expanded(_value(entry), given)
        environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        environment |= given | {"JOB_COMPLETION_INDEX": str(index)}
        command = [expanded(word, given) for word in container["command"]]
        return subprocess.Popen(
            command,
            env=environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def expanded(text: str, variables: dict[str, str]) -> str:
    """Return a text as Kubernetes expands it: $$ is one $, $(NAME) a known variable."""

    def put(found: re.Match[str]) -> str:
        return "$" if found[0] == "$$" else variables.get(found[1], found[0])

    return re.sub(r"\$\$|\$\((.*?)\)", put, text)


def _value(entry: dict[str, Any]) -> str:
    if "value" in entry:
        return str(entry["value"])
    reference = entry["valueFrom"]["secretKeyRef"]
    return f"secret:{reference['name']}/{reference['key']}"


def install(root: Path, tools: Path) -> FakeKubernetes:
    """Install kubectl in `tools`, and python3 for containers; the state is in `root`."""
    tools.mkdir(parents=True, exist_ok=True)
    program = root / "kubectl.py"
    root.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(__file__).with_name("kubectl.py"), program)
    state = program.with_suffix(".state")
    state.mkdir()
    (state / "namespaces").write_text("default team")
    for name, command in {"kubectl": f"{sys.executable} {program}", "python3": sys.executable}.items():
        (tools / name).write_text(f'#!/bin/bash\nexec {command} "$@"\n')
        (tools / name).chmod(0o755)
    return FakeKubernetes(state)
