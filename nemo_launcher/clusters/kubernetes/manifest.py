# SPDX-License-Identifier: Apache-2.0
"""The manifest of a job or a chain of jobs: one JSON file with an indexed Job and a headless Service.

JSON rather than YAML, because all readers agree on what is a string. Each stage of a chain is a container of the same
pods. All but the last are init containers, which run in order, so that no pod holds GPUs while it waits.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

from nemo_launcher.clusters.job import Job, JobFiles
from nemo_launcher.clusters.kubernetes.options import Object, Options
from nemo_launcher.clusters.times import minutes
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.exit_status import STOPPED
from nemo_launcher.files.foreign import load_json

LABEL = "nemo-adapter-launcher/job"
"""Label on Jobs and pods with the name of the Job."""
PORT = 29500
"""The rendezvous port of all ranks, at the pod with index 0."""
GOES_ON = "NEMO_LAUNCHER_GOES_ON"
"""Environment variable, set in a stage if the next stage starts even after a failure."""
AFTER = "NEMO_LAUNCHER_AFTER"
"""Environment variable in each stage but the first: the file with the previous stage's exit status."""
_MAX_SLUG = 30


def digest(job: JobFiles) -> str:
    """Return eight hexadecimal digits that identify a job's folder and name."""
    return hashlib.sha256(os.fsencode(job.folder / job.name)).hexdigest()[:8]


def object_name(prefix: str, job: JobFiles) -> str:
    """Return the name of a job's objects: a DNS label, the same at every start from its folder."""
    slug = re.sub(r"[^a-z0-9]+", "-", f"{prefix}{job.name}".lower(), flags=re.ASCII)[:_MAX_SLUG].strip("-")
    return f"{slug if slug[:1].isalpha() else f'job-{slug}'.strip('-')}-{digest(job)}"


def manifest_file(job: JobFiles) -> Path:
    """Return the path of `<job>_k8s.json`, the manifest of this job alone."""
    return job.folder / f"{job.name}_k8s.json"


def chain_file(job: JobFiles) -> Path:
    """Return the path of `<job>_k8s_chain.json`, the manifest of this job and the later stages of its chain."""
    return job.folder / f"{job.name}_k8s_chain.json"


def text_of(manifest: Object) -> str:
    """Return a manifest as text for its file."""
    return json.dumps(manifest, indent=2) + "\n"


def manifest_of(job: Job, image: str, options: Options) -> Object:
    """Return the manifest of one job."""
    name = object_name(options.text("job_name_prefix") or "", job)
    labels: Object = {LABEL: name, "app.kubernetes.io/managed-by": "nemo-adapter-launcher"}
    metadata: Object = {"name": name, "namespace": options.namespace, "labels": labels}
    spec: Object = {
        "completionMode": "Indexed",
        "completions": job.num_nodes,
        "parallelism": job.num_nodes,
        "backoffLimit": options.number("backoff_limit"),
        "activeDeadlineSeconds": None if job.time_limit is None else math.ceil(minutes(job.time_limit) * 60),
        "ttlSecondsAfterFinished": options.number("ttl_seconds_after_finished"),
        "podFailurePolicy": _failure_policy(options),
        "template": {"metadata": {"labels": labels}, "spec": _pod(job, name, image, options)},
    }
    service: Object = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,  # ranks must find each other before any pod is ready
        "selector": {LABEL: name},
        "ports": [{"name": "rendezvous", "port": PORT}],
    }
    return {
        "apiVersion": "v1",
        "kind": "List",
        "items": [
            {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": service},
            {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": _without_nulls(spec)},
        ],
    }


def _failure_policy(options: Options) -> Object | None:
    """Return the rules for what is not a failure: a disruption, and a training that stopped with a checkpoint.

    Kubernetes accepts such a policy only with restart policy Never.
    """
    if not options.flag("requeue") or options.text("restart_policy") != "Never":
        return None
    disrupted: Object = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    stopped: Object = {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [STOPPED]}}
    return {"rules": [disrupted, stopped]}


def _pod(job: Job, name: str, image: str, options: Options) -> Object:
    mounts = options.mounts()
    volumes: list[Object] = [{"name": f"volume-{i}", **mount.source} for i, mount in enumerate(mounts)]
    places = [
        _without_nulls(
            {
                "name": f"volume-{i}",
                "mountPath": mount.path,
                "subPath": mount.sub_path,
                "readOnly": mount.read_only or None,
            }
        )
        for i, mount in enumerate(mounts)
    ]
    if options.text("shared_memory") is not None:
        memory: Object = {"medium": "Memory", "sizeLimit": options.text("shared_memory")}
        volumes.append({"name": "shared-memory", "emptyDir": memory})
        places.append({"name": "shared-memory", "mountPath": "/dev/shm"})
    user = _without_nulls({"runAsUser": options.number("run_as_user"), "runAsGroup": options.number("run_as_group")})
    pod: Object = {
        "restartPolicy": options.text("restart_policy"),
        "subdomain": name,
        "terminationGracePeriodSeconds": options.number("termination_grace_seconds"),
        "serviceAccountName": options.text("service_account"),
        "priorityClassName": options.text("priority_class"),
        "imagePullSecrets": [{"name": secret} for secret in options.texts("image_pull_secrets")] or None,
        "nodeSelector": options.mapping("node_selector") or None,
        "tolerations": [_toleration(entry) for entry in options.entries("tolerations")] or None,
        "securityContext": user or None,
        "containers": [_container(job, name, image, options, places)],
        "volumes": volumes or None,
    }
    return _without_nulls(pod)


def _container(job: Job, name: str, image: str, options: Options, places: list[Object]) -> Object:
    environment: list[Object] = [
        {"name": "MASTER_ADDR", "value": _first_pod(name)},
        {"name": "MASTER_PORT", "value": str(PORT)},
    ]
    for entry in options.entries("env_from_secrets"):
        source = {"secretKeyRef": {"name": entry.get("secret"), "key": entry.get("key")}}
        environment.append({"name": entry.get("name"), "valueFrom": source})
    requested = _without_nulls({"cpu": options.text("cpus"), "memory": options.text("memory")})
    limits = _without_nulls({"memory": options.text("memory")})
    resource = options.text("gpu_resource")
    if job.wants_gpu and resource is not None:
        limits[resource] = job.devices
    container: Object = {
        "name": re.sub(r"[^a-z0-9]+", "-", job.stage.lower()),
        "image": image,
        "imagePullPolicy": options.text("image_pull_policy"),
        "command": ["bash", _literal(str(job.script_file))],
        "env": environment,
        "resources": _without_nulls({"requests": requested or None, "limits": limits or None}) or None,
        "volumeMounts": places or None,
    }
    return _without_nulls(container)


def _toleration(entry: Object) -> Object:
    return {"tolerationSeconds" if key == "toleration_seconds" else key: value for key, value in entry.items()}


def _first_pod(name: str) -> str:
    """Return the host name of the pod with index 0."""
    return f"{name}-0.{name}"


def _literal(text: str) -> str:
    """Return the text of a command or variable with $ escaped, since Kubernetes expands $(NAME)."""
    return text.replace("$", "$$")


def _without_nulls(values: Object) -> Object:
    return {key: value for key, value in values.items() if value is not None}


# --- chains ---------------------------------------------------------------------------------------------------------


def load(job: JobFiles) -> Object:
    """Return the manifest in a job's folder. Raises UserError when it is missing or unusable."""
    path = manifest_file(job)
    if path.is_symlink() or (path.exists() and path.stat().st_uid != os.getuid()):
        raise UserError(Problem(str(path), "is a link or belongs to another user", "launch the stage again"))
    if not path.is_file():
        raise UserError(Problem(str(path), "no such file", "launch the stage again"))
    found = load_json(path)
    try:
        _parts(found)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(Problem(str(path), "was not written by this launcher", "launch the stage again")) from error
    return dict(found)


def chained(jobs: Sequence[JobFiles], manifests: Sequence[Object], goes_on: Sequence[bool]) -> Object:
    """Return one manifest for the stages of a chain, in order; a single manifest is returned as it is.

    goes_on: for each stage but the last, whether the next one starts even if it fails. Raises UserError for stages
    that were launched with different pod options.
    """
    whole = copy.deepcopy(manifests[0])
    if len(manifests) == 1:
        return whole
    stages = [_parts(copy.deepcopy(manifest)) for manifest in manifests]
    _, spec, pod, _ = _parts(whole)
    name = object_name_of(whole)
    for _, _, other, _ in stages[1:]:
        if _without_own(other) != _without_own(pod):
            what = "the stages of the chain were launched with different cluster options"
            raise UserError(Problem("cluster", what, "launch the chain again with its own command"))
    containers = [container for _, _, _, container in stages]
    files = [None, *(job.exit_status_file for job in jobs[:-1])]
    for container, on, after in zip(containers, [*goes_on, False], files, strict=True):
        own = {"MASTER_ADDR": _first_pod(name)}
        own |= {GOES_ON: "1"} if on else {}
        own |= {} if after is None else {AFTER: _literal(str(after))}
        others = [entry for entry in _objects(container["env"]) if entry["name"] not in ("MASTER_ADDR", GOES_ON, AFTER)]
        container["env"] = [*({"name": key, "value": value} for key, value in own.items()), *others]
    pod["initContainers"], pod["containers"] = containers[:-1], containers[-1:]
    nodes = max(_number(other["completions"]) for _, other, _, _ in stages)
    spec["completions"] = spec["parallelism"] = nodes
    deadlines = [_number(other.get("activeDeadlineSeconds")) for _, other, _, _ in stages]
    spec.pop("activeDeadlineSeconds", None)
    if all(deadlines):
        spec["activeDeadlineSeconds"] = sum(deadlines)
    return whole


def object_name_of(manifest: Object) -> str:
    """Return the name of a manifest's objects."""
    return str(_parts(manifest)[0]["name"])


def nodes_of(manifest: Object) -> int:
    """Return the number of pods."""
    return _number(_parts(manifest)[1]["completions"])


def renamed(manifest: Object, name: str) -> list[Object]:
    """Return the objects of a manifest under another name."""
    items = _objects(copy.deepcopy(manifest["items"]))
    for item in items:
        item["metadata"] = {**_object(item["metadata"]), "name": name}
    return items


def _parts(manifest: Object) -> tuple[Object, Object, Object, Object]:
    """Return the Job's metadata and spec, the pod spec and the last container, as parts that may be modified."""
    job = _object(next((item for item in _objects(manifest["items"]) if item.get("kind") == "Job"), None))
    spec = _object(job["spec"])
    pod = _object(_object(spec["template"])["spec"])
    return _object(job["metadata"]), spec, pod, _objects(pod["containers"])[-1]


def _without_own(pod: Object) -> Object:
    return {key: value for key, value in pod.items() if key not in ("containers", "initContainers", "subdomain")}


def _object(value: object) -> Object:
    if not isinstance(value, dict):
        raise TypeError("not an object")
    return value


def _objects(value: object) -> list[Object]:
    if not isinstance(value, list):
        raise TypeError("not a list")
    return [_object(item) for item in value]


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0
