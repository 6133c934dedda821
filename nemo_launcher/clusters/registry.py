# SPDX-License-Identifier: Apache-2.0
"""The registry of cluster types by their `cluster_type`; each folder registers its own."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator

from nemo_launcher.clusters.base import Cluster
from nemo_launcher.clusters.kinds import KINDS, Kind

CLUSTERS: dict[str, type[Cluster]] = {}
"""The registered types, in the order of detection when `cluster_type` is null."""


def register(cluster: type[Cluster]) -> type[Cluster]:
    """Register a cluster type. Raises ValueError when its name is taken."""
    if cluster.cluster_type in CLUSTERS:
        raise ValueError(f"cluster type {cluster.cluster_type} is registered twice")
    CLUSTERS[cluster.cluster_type] = cluster
    KINDS[cluster.cluster_type] = Kind(cluster.queues, cluster.is_job_id)
    return cluster


def detect() -> str:
    """Return the type of cluster that this machine belongs to."""
    return next(name for name, cluster in CLUSTERS.items() if cluster.detect())


def meant_by(word: str) -> str | None:
    """Return the type that other programs call by this word, such as slurm; None if there is none."""
    return next((name for name, cluster in CLUSTERS.items() if word.casefold() in cluster.aliases), None)


def choices() -> str:
    """Return all types with their titles, for messages."""
    return ", ".join(f"{name} ({cluster.title})" for name, cluster in CLUSTERS.items())


def counts_on(key: str) -> tuple[str, ...]:
    """Return the only cluster types on which a key has an effect; empty if it has one everywhere."""
    return tuple(name for name, cluster in CLUSTERS.items() if key in cluster.keys)


def sections() -> Iterator[tuple[str, type]]:
    """Yield the types with a `cluster` section, each with its schema."""
    for name, cluster in CLUSTERS.items():
        if cluster.section is not None:
            yield name, cluster.section


def any_section() -> object:
    """Return the union of all types' schemas of the `cluster` section."""
    return functools.reduce(operator.or_, (schema for _, schema in sections()))


def suggested_option(name: str) -> str | None:
    """Return how to set an option of a cluster that has no key of its own; None if no type has it."""
    return next((fix for cluster in CLUSTERS.values() if (fix := cluster.suggested_option(name)) is not None), None)
