# SPDX-License-Identifier: Apache-2.0
"""`cluster.additional_parameters`: the sbatch options that a job script may have besides those with keys."""

from __future__ import annotations

import re
from collections.abc import Iterable

from nemo_launcher.clusters.slurm import commands as slurm
from nemo_launcher.clusters.slurm.section import SlurmSection
from nemo_launcher.errors import Problem, did_you_mean

WHERE = "cluster.additional_parameters"
NAMES = """
    acctg-freq batch bb bbf begin chdir cluster-constraint consolidate-segments container container-id contiguous
    core-spec cores-per-socket cpu-freq cpus-per-gpu deadline delay-boot distribution export export-file extra
    extra-node-info get-user-env gid gpu-bind gpu-freq gpus gpus-per-socket gres-flags hint input licenses mcs-label
    mem-bind mem-per-cpu mem-per-gpu mincpus network nice no-kill no-requeue nodefile ntasks-per-core ntasks-per-gpu
    ntasks-per-socket oom-kill-step oversubscribe power prefer priority profile propagate reboot resv-ports segment
    sockets-per-node spread-job stepmgr switches thread-spec threads-per-core time-min tmp tres-bind tres-per-task uid
    use-min-nodes wckey
"""
OPTIONS = frozenset(NAMES.split())
# options that the launcher sets itself or does not support, with what to use instead
OWN = {
    "array": "one job a stage; several runs: -m",
    "clusters": "the cluster of the SLURM_CONF that is set",
    "dependency": "dependency, or run.dependency of the stage",
    "error": "logs are in run.results_dir",
    "help": "",
    "hold": "scontrol hold JOB",
    "ignore-pbs": "",
    "job-name": "cluster.job_name_prefix and run.name of the stage",
    "kill-on-invalid-dep": "always yes",
    "nodes": "trainer.num_nodes of the stage",
    "ntasks": "trainer.num_nodes and trainer.devices of the stage",
    "ntasks-per-node": "trainer.devices of the stage",
    "open-mode": "always append",
    "output": "logs are in run.results_dir",
    "parsable": "",
    "quiet": "",
    "test-only": "debug=True writes the scripts only",
    "time": "run.time_limit of the stage",
    "usage": "",
    "verbose": "",
    "version": "",
    "wait": "nemo-launcher logs JOB --follow",
    "wrap": "cluster.setup: lines before srun",
}


def normal(name: str) -> str:
    """Return an option's name in sbatch's spelling."""
    return name.lstrip("-").replace("_", "-")


def check_additional(names: Iterable[str]) -> list[Problem]:
    """Return a problem for each additional parameter that sbatch does not know or another key sets."""
    keys = {normal(key) for key in SlurmSection.__dataclass_fields__}
    problems = []
    for name in names:
        where, option = f"{WHERE}.{name}", normal(name)
        if option in keys:
            problems.append(Problem(where, "has its own key", f"cluster.{option.replace('-', '_')}=..."))
        elif option in OWN:
            problems.append(Problem(where, "cannot be set here", OWN[option]))
        elif option not in OPTIONS and option not in _installed():
            problems.append(Problem(where, "sbatch has no such option", did_you_mean(option, OPTIONS)))
    return problems


def suggested(name: str) -> str | None:
    """Return how to set an sbatch option that has no key of its own; None if sbatch has no such option."""
    option = normal(name)
    if option in OPTIONS:
        return f"+{WHERE}.{name}=VALUE"
    return OWN.get(option) or None


def _installed() -> set[str]:
    """Return the options that this machine's sbatch lists; it may be newer than OPTIONS. Empty without sbatch."""
    (answer,) = slurm.ask(["sbatch", "--help"])
    if answer is None:
        return set()
    return set(re.findall(r"--([a-z][a-z-]*)", answer.stdout))
