# SPDX-License-Identifier: Apache-2.0
"""A fake Slurm of shell scripts that stores its jobs as files with their states."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.workplace import executable

SBATCH = r"""
[ "$1" != --test-only ] || exit 0
[ ! -e {root}/refuse ] || {{ echo "sbatch: error: AssocMaxSubmitJobLimit" >&2; exit 1; }}
id=$((101 + $(ls {root}/jobs | wc -l)))
echo "$id ${{SBATCH_JOB_NAME:-}} $*" >> {root}/submitted
echo PENDING > {root}/jobs/$id
[ "$id" != "$(cat {root}/last 2>/dev/null)" ] || touch {root}/refuse
echo $id
"""
SQUEUE = r"""
echo squeue >> {root}/asked
if [ "$1" = --me ]; then
  while read -r id _; do printf '%-24s%s\n' $id "$(sed -n 's/^#SBATCH --output=//p' $(tail -n +"$((id - 100))" \
    {root}/submitted | head -n 1 | grep -o '[^ ]*[.]sh'))"; done < {root}/submitted
  exit
fi
for option in "$@"; do case "$option" in --jobs=*) ids=${{option#--jobs=}};; esac; done
for id in ${{ids//,/ }}; do
  [ -s {root}/jobs/$id ] || continue
  printf '%-24s%-24s%-60s%-24s%-12s%-200s\n' $id "$(cat {root}/jobs/$id)" None 1:00 0 '(null)'
done
"""


@dataclass
class FakeSlurm:
    """The state: jobs/ID holds a job's state in capitals; `refuse` makes sbatch refuse, `last` after that job id."""

    root: Path
    tools: Path

    def submitted(self) -> list[str]:
        """Return a line per submission: id, name from the environment, arguments."""
        path = self.root / "submitted"
        return path.read_text().splitlines() if path.exists() else []

    def asked(self) -> int:
        """Return the number of squeue calls."""
        path = self.root / "asked"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def set(self, job_id: int, state: str) -> None:
        """Set a job's state; an empty state forgets the job."""
        (self.root / "jobs" / str(job_id)).write_text(state)

    def hang(self, *commands: str) -> None:
        """Make commands hang."""
        for command in commands:
            executable(self.tools / command, f"echo {command} $* >> {self.root}/hung; exec sleep 60")

    def hung(self) -> list[str]:
        """Return the calls that hung."""
        path = self.root / "hung"
        return path.read_text().splitlines() if path.exists() else []


def install(root: Path, tools: Path) -> FakeSlurm:
    """Write the commands into `tools`; their state is in `root`."""
    (root / "jobs").mkdir(parents=True)
    executable(tools / "sbatch", SBATCH.format(root=root))
    executable(tools / "squeue", SQUEUE.format(root=root))
    executable(tools / "scancel", f'for id in "$@"; do echo CANCELLED > {root}/jobs/$id; done')
    return FakeSlurm(root, tools)
