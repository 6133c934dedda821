# SPDX-License-Identifier: Apache-2.0
"""The stages that `stages` chooses."""

from __future__ import annotations

from nemo_launcher.config.constraints import shown
from nemo_launcher.errors import Problem, did_you_mean, nearest
from nemo_launcher.launcher.elsewhere import ELSEWHERE
from nemo_launcher.launcher.stages import STAGES


def chosen_stages(value: object) -> tuple[list[str], list[Problem]]:
    """Parse `stages`: a list, one name, or names with commas. Returns the known names and the problems."""
    words = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else []
    names = [str(word).strip() for word in words if str(word).strip()]
    known = [name for name in names if name in STAGES]
    problems = [_unknown_stage(name, known) for name in names if name not in STAGES]
    problems += [Problem("stages", f"{n} is listed twice", "name it once") for n in STAGES if names.count(n) > 1]
    if not names:
        problems.append(Problem("stages", "no stage is chosen", f"choose from: {', '.join(STAGES)}"))
    return list(dict.fromkeys(known)), problems


def _unknown_stage(name: str, known: list[str]) -> Problem:
    """Return the problem of a stage that does not exist. known: the others in stages, which do."""
    group, _, choice = name.partition("/")
    if name in ELSEWHERE:
        rest = f"without it: 'stages=[{','.join(known)}]'" if known else f"here are: {', '.join(STAGES)}"
        return Problem("stages", f"{name!r}: {ELSEWHERE[name].what}", f"{ELSEWHERE[name].done_by}; {rest}")
    if choice:
        stage = nearest(group, STAGES) or "adapter_learning"
        file = choice if group in STAGES else name
        what = f"{shown(name)} is the file of a stage, not a stage"
        return Problem("stages", what, f"name the stage and choose its file: stages=[{stage}] {stage}={file}")
    return Problem("stages", f"no stage is called {shown(name)}", did_you_mean(name, STAGES))
