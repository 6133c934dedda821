# SPDX-License-Identifier: Apache-2.0
"""The keys of the `cluster` section for Kubernetes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from nemo_launcher.config.constraints import Form
from nemo_launcher.config.fields import PathText, optional
from nemo_launcher.config.sections.common import Count, Size

_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
QUALIFIED_NAME = r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?"
Label = Annotated[str, Form(_LABEL, "a name of lower-case letters, digits and -", "my-team")]
Name = Annotated[
    str,
    Form(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*", "an object name: lower-case letters, digits, - and .", "my-name"),
]
Resource = Annotated[str, Form(QUALIFIED_NAME, "the name of a resource", "nvidia.com/gpu")]
LabelValue = Annotated[
    str, Form(r"([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?", "a label's value: letters, digits, -, _ and .", "a100")
]
SecretKey = Annotated[str, Form(r"[-\w.]{1,253}", "a key of a secret: letters, digits, -, _ and .", "api-key")]
Variable = Annotated[str, Form(r"[A-Za-z_][A-Za-z0-9_]*", "the name of a variable", "WANDB_API_KEY")]
Quantity = Annotated[str, Form(r"\d{1,15}(\.\d{1,3})?(m|k|Ki|[MGTP]i?)?", "an amount, such as 500m, 4 or 64Gi", "16Gi")]


@dataclass(frozen=True)
class Volume:
    """A volume of the pods; exactly one of pvc, host_path and nfs_server is its source."""

    mount_path: PathText = optional()
    """The mount point in the pods; the launcher's machine must have the same files at the same path."""
    pvc: Name = optional()
    """A PersistentVolumeClaim."""
    host_path: PathText = optional()
    """A folder that exists on every node."""
    nfs_server: str = optional()
    """An NFS server."""
    nfs_path: PathText = optional()
    """The path that the NFS server exports."""
    sub_path: str = optional()
    """The part of the volume that is mounted."""
    read_only: bool = optional()
    """Whether the pods may only read it."""


@dataclass(frozen=True)
class SecretVariable:
    """An environment variable whose value is a key of a Secret; no file of the launcher contains the value."""

    name: Variable = optional()
    """The variable."""
    secret: Name = optional()
    """The name of the Secret."""
    key: SecretKey = optional()
    """The key in the Secret."""


@dataclass(frozen=True)
class Toleration:
    """A taint of nodes that the pods tolerate, in Kubernetes' terms."""

    key: Resource = optional()
    """The taint's key."""
    operator: Literal["Exists", "Equal"] = optional()
    """Exists matches any value of the taint, Equal only `value`."""
    value: LabelValue = optional()
    """The taint's value."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = optional()
    """The taint's effect; any effect when absent."""
    toleration_seconds: Size = optional()
    """Seconds that a NoExecute taint is tolerated."""


@dataclass(frozen=True)
class KubernetesSection:
    """Options of the indexed Job that runs a chain of stages; the key `container` is its image."""

    namespace: Label = "default"
    """The namespace of all objects."""
    job_name_prefix: Annotated[str, Form(r"([a-z][-a-z0-9]{0,19})?", "lower-case letters, digits and -", "nemo-")] = ""
    """Prefix of every Job's name; at most 20 characters."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """When nodes pull the image; null for Kubernetes' default."""
    image_pull_secrets: list[Name] | None = None
    """Names of the Secrets for pulling the image."""
    volumes: list[Volume] | None = None
    """Volumes of the pods."""
    env_from_secrets: list[SecretVariable] | None = None
    """Environment variables from Secrets."""
    gpu_resource: Resource | None = "nvidia.com/gpu"
    """The resource name of GPUs; null requests no GPUs."""
    cpus: Quantity | Count | None = None
    """CPUs requested for each pod."""
    memory: Quantity | None = None
    """Memory requested for each pod, also its limit."""
    shared_memory: Quantity | None = None
    """The size of /dev/shm, which counts as memory; null for the runtime's default of 64 MiB."""
    node_selector: dict[str, LabelValue] | None = None
    """Labels that a pod's node must have."""
    tolerations: list[Toleration] | None = None
    """Taints that the pods tolerate."""
    service_account: Name | None = None
    """The service account of the pods; null for the namespace's default."""
    priority_class: Name | None = None
    """The priority class of the pods; null for the cluster's default."""
    run_as_user: Size | None = None
    """The user id of the processes, which owns the files they write; null for the image's."""
    run_as_group: Size | None = None
    """The group id of the processes; null for the image's."""
    restart_policy: Literal["Never", "OnFailure"] = "Never"
    """Never replaces a failed pod by a new one; OnFailure restarts its container on the same node."""
    backoff_limit: Size = 0
    """Number of retries after failures, not counting the restarts of `requeue`."""
    requeue: bool = True
    """Whether a training that stopped with a checkpoint, or was preempted or evicted, resumes in a new pod."""
    termination_grace_seconds: Count = 180
    """Seconds to save a checkpoint before a pod is killed."""
    ttl_seconds_after_finished: Size | None = None
    """Seconds after which Kubernetes removes a finished Job; null keeps it."""
