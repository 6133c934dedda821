# SPDX-License-Identifier: Apache-2.0
"""The kinds of clusters: one folder each, one interface (`base.Cluster`) and one registry."""

from nemo_launcher.clusters.base import Cluster, Settings
from nemo_launcher.clusters.bcp.cluster import BaseCommand
from nemo_launcher.clusters.interactive.cluster import Interactive
from nemo_launcher.clusters.kubernetes.cluster import Kubernetes
from nemo_launcher.clusters.registry import CLUSTERS, register
from nemo_launcher.clusters.slurm.cluster import Slurm

for _cluster in (Slurm, BaseCommand, Kubernetes, Interactive):
    register(_cluster)

__all__ = ["CLUSTERS", "Cluster", "Settings", "register"]
