"""One launcher for each kind of cluster."""

from nemo_launcher.core.launchers.base import Launcher, Settings
from nemo_launcher.core.launchers.bcp import BCPLauncher
from nemo_launcher.core.launchers.interactive import InteractiveLauncher
from nemo_launcher.core.launchers.slurm import SlurmLauncher

LAUNCHERS: dict[str, type[Launcher]] = {
    launcher.cluster_type: launcher for launcher in (SlurmLauncher, BCPLauncher, InteractiveLauncher)
}

__all__ = ["LAUNCHERS", "Launcher", "Settings"]
