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
Label = Annotated[str, Form(_LABEL, "a name of small letters, digits and -", "my-team")]
Name = Annotated[
    str,
    Form(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*", "the name of an object: small letters, digits, - and .", "my-name"),
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
    """A folder of the pods: exactly one of pvc, host_path and nfs_server says where it comes from."""

    mount_path: PathText = optional()
    """Where the pods have it; the launcher's machine has the same files at the same path."""
    pvc: Name = optional()
    """A PersistentVolumeClaim."""
    host_path: PathText = optional()
    """A folder of every node."""
    nfs_server: str = optional()
    """An NFS server, and nfs_path what it exports."""
    nfs_path: PathText = optional()
    """The path that the NFS server exports."""
    sub_path: str = optional()
    """The part of the volume that is mounted."""
    read_only: bool = optional()
    """Whether the pods may only read it."""


@dataclass(frozen=True)
class SecretVariable:
    """An environment variable whose value is a key of a Secret; no file of the launcher's holds the value."""

    name: Variable = optional()
    """The variable."""
    secret: Name = optional()
    """The name of the Secret."""
    key: SecretKey = optional()
    """The key in the Secret."""


@dataclass(frozen=True)
class Toleration:
    """A taint of nodes that the pods put up with, as Kubernetes has it."""

    key: Resource = optional()
    """The taint's key."""
    operator: Literal["Exists", "Equal"] = optional()
    """Whether the taint only has to exist, or to have this value."""
    value: LabelValue = optional()
    """The taint's value."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = optional()
    """The taint's effect; absent: any."""
    toleration_seconds: Size = optional()
    """How long a NoExecute taint is put up with, in seconds."""


@dataclass(frozen=True)
class KubernetesSection:
    """One indexed Job for a chain of stages; `container` is its image."""

    namespace: Label = "default"
    """The namespace of all objects."""
    job_name_prefix: Annotated[str, Form(r"([a-z][-a-z0-9]{0,19})?", "small letters, digits and -", "nemo-")] = ""
    """In front of the name of every Job; at most 20 characters."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """When nodes pull the image; null: Kubernetes decides."""
    image_pull_secrets: list[Name] | None = None
    """Names of Secrets."""
    volumes: list[Volume] | None = None
    """Folders of the pods."""
    env_from_secrets: list[SecretVariable] | None = None
    """Environment variables from Secrets."""
    gpu_resource: Resource | None = "nvidia.com/gpu"
    """What a node's GPUs are requested as; null requests none."""
    cpus: Quantity | Count | None = None
    """Requested for each pod."""
    memory: Quantity | None = None
    """Requested for each pod, and its limit."""
    shared_memory: Quantity | None = None
    """The size of /dev/shm, which counts as memory; null leaves the runtime's 64 MiB."""
    node_selector: dict[str, LabelValue] | None = None
    """Labels that a pod's node must have."""
    tolerations: list[Toleration] | None = None
    """Taints that the pods put up with."""
    service_account: Name | None = None
    """The service account of the pods; null: the namespace's default."""
    priority_class: Name | None = None
    """The priority class of the pods; null: the cluster's default."""
    run_as_user: Size | None = None
    """User and group ids of the processes, who own the files that they write; null is the image's."""
    run_as_group: Size | None = None
    """The group id of the processes; null: the image's."""
    restart_policy: Literal["Never", "OnFailure"] = "Never"
    """Never: a failed pod is replaced by another one; OnFailure: its container starts again on the same node."""
    backoff_limit: Size = 0
    """Failures that are tried again, beside what `requeue` takes up again."""
    requeue: bool = True
    """A training that stopped with a checkpoint, or was preempted or evicted, goes on in a new pod."""
    termination_grace_seconds: Count = 180
    """Time to save a checkpoint before a pod is killed."""
    ttl_seconds_after_finished: Size | None = None
    """When Kubernetes removes the finished Job; null keeps it."""
