# SPDX-License-Identifier: Apache-2.0
"""The kinds of clusters, by the name that `cluster_type` has for them: each one's own folder registers it."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator

from nemo_launcher.clusters.base import Cluster
from nemo_launcher.clusters.kinds import KINDS, Kind

CLUSTERS: dict[str, type[Cluster]] = {}
"""In the order in which they are looked for where `cluster_type` is null."""


def register(cluster: type[Cluster]) -> type[Cluster]:
    """Make a kind of cluster known. Raises ValueError where its name is taken."""
    if cluster.cluster_type in CLUSTERS:
        raise ValueError(f"cluster type {cluster.cluster_type} is registered twice")
    CLUSTERS[cluster.cluster_type] = cluster
    KINDS[cluster.cluster_type] = Kind(cluster.queues, cluster.is_job_id)
    return cluster


def detect() -> str:
    """Return the type of cluster that this machine belongs to."""
    return next(name for name, cluster in CLUSTERS.items() if cluster.detect())


def meant_by(word: str) -> str | None:
    """Return the type that goes by this word elsewhere, such as slurm; None when none does."""
    return next((name for name, cluster in CLUSTERS.items() if word.casefold() in cluster.words), None)


def choices() -> str:
    """Return all types, each with what it is."""
    return ", ".join(f"{name} ({cluster.title})" for name, cluster in CLUSTERS.items())


def counts_on(key: str) -> tuple[str, ...]:
    """Return the types of clusters on which alone a key has an effect; none for a key that counts everywhere."""
    return tuple(name for name, cluster in CLUSTERS.items() if key in cluster.keys)


def sections() -> Iterator[tuple[str, type]]:
    """Yield the types that have options in the `cluster` section, each with its schema."""
    for name, cluster in CLUSTERS.items():
        if cluster.section is not None:
            yield name, cluster.section


def any_section() -> object:
    """Return the schema that takes the `cluster` section of every type: the union of theirs."""
    return functools.reduce(operator.or_, (schema for _, schema in sections()))
