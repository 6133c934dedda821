# SPDX-License-Identifier: Apache-2.0
"""One launcher for each kind of cluster."""

from nemo_launcher.clusters.base import Launcher, Settings
from nemo_launcher.clusters.bcp.launcher import BCPLauncher
from nemo_launcher.clusters.interactive.launcher import InteractiveLauncher
from nemo_launcher.clusters.slurm.launcher import SlurmLauncher

LAUNCHERS: dict[str, type[Launcher]] = {
    launcher.cluster_type: launcher for launcher in (SlurmLauncher, BCPLauncher, InteractiveLauncher)
}

__all__ = ["LAUNCHERS", "Launcher", "Settings"]
