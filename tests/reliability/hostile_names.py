# SPDX-License-Identifier: Apache-2.0
"""Hostile text in every key that takes text: refused with a message, or passed through exactly, and nothing executed.

    python -m tests.reliability.hostile_names --json out.json
    python -m tests.reliability.hostile_names --only cluster.comment:text --json out.json

Each launch is real: the launcher's own main(), for every kind of cluster. sbatch, srun, bcprun, scontrol, kubectl and
python are recorders on the PATH; the scripts are run by bash.
"""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.plugins import Plugins

from nemo_launcher.clusters import CLUSTERS
from nemo_launcher.data.squad import SquadBuilder
from nemo_launcher.launcher.launch import main as launcher
from tests.archives import write_base
from tests.jobs import REPOSITORY
from tests.reliability.harness import Failure, Report, in_child, parse_arguments, run_cases, scratch
from tests.reliability.schema_keys import TextKey, counts_on, text_keys

CANARY = "CANARY"
PLAIN = "plain7"
NEEDED = {
    "k8s": [
        *("container=image", "cluster.volumes=[{mount_path: /, pvc: data}]", "cluster.tolerations=[{key: gpu}]"),
        "cluster.env_from_secrets=[{name: SECRET, secret: secret, key: key}]",
    ]
}
"""Required settings of a launch for each kind of cluster."""
SHELL = ("cluster.setup",)
"""Keys whose text is shell code and runs as written (tests/clusters/test_slurm_scripts.py)."""
VALUES = {
    "single_quote": "x'y' ; touch CANARY ; '",
    "double_quote": 'x"; touch CANARY; "',
    "substitution": "x$(touch CANARY)",
    "backticks": "x`touch CANARY`",
    "semicolon": "x; touch CANARY #",
    "newline": "x\ntouch CANARY",
    "carriage_return": "x\r\ntouch CANARY",
    "tab": "x\ty",
    "glob": "x*?[a-z]",
    "spaces": " x  y ",
    "dashes": "--wrap=touch CANARY",
    "dash": "-x",
    "percent": "x%j%%A%s",
    "variable": "x$HOME",
    "unicode": "x\u017b\u4e16\U0001f600",
    "right_to_left": "x\u202egnp.exe",
    "long": "x" * 5000,
    "long_name": "x" * 256,
    "empty": "",
    "parent": "../../x",
    "control": "x\x1b[31m\x07",
    "braces": "x{a,b}{0}",
    "backslash": "x\\n\\",
    "and": "x && touch CANARY || touch CANARY",
    "comma": "x,y:z=w",
    "hash": "x #SBATCH --wrap=y",
}
_RECORDER = """#!/bin/bash
{first}
{{ printf '%s\\0' "$0" "$@"; printf '\\0\\0'; }} >> {record}
{more}
"""
# The launcher also uses python for logs; calls that are not jobs are passed to the real one.
_JOB_ALONE = '[ "$1" = -u ] && [ "${{2: -3}}" = .py ] && [ "${{2##*/}}" != start_ranks.py ] || exec {python} "$@"'
_ENVIRONMENT = 'env -0 > {record}.env; cat >/dev/null < "${{@: -1}}" || exit 9'


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the driver; return 1 if there are failures."""
    options = parse_arguments(
        str(__doc__),
        arguments,
        count={
            "type": int,
            "metavar": "N",
            "help": "hostile values, drawn by the seed, of each stage on one kind of cluster; default: all on all",
        },
        only={"metavar": "KEY:FORM:VALUE", "help": "one value of one key, alone"},
    )
    Plugins.instance()  # looked for once, then forked
    report = Report("hostile_names")
    keys = [key for key in text_keys() if key.name not in SHELL]
    report.more["keys"] = [str(key) for key in keys]
    report.more["values"] = VALUES
    with report.interruptible(), scratch(options.keep) as root:
        tools = _write_tools(root)

        def run(case: tuple[str, str, str]) -> list[dict[str, Any]]:
            stage, cluster, name = case
            mine = [key for key in keys if key.stage == stage and counts_on(key, cluster)]
            chosen = [key for key in mine if (options.only or f"{key}:{name}") == f"{key}:{name}"]
            return list(_Trial(chosen, name, cluster, tools, options.keep).verdicts())

        for answers in run_cases(_cases(keys, options), run, options.jobs):
            for answer in answers:
                report.count(answer["cluster"], texts=1, **{answer["outcome"]: 1})
                if answer["problem"]:
                    what = f"{answer['cluster']}: {answer['key']}={answer['value']}: {answer['problem']}"
                    repeat = f"--only {answer['key']}:{answer['value']}"
                    report.failures.append(Failure(answer["cluster"], repeat, what, answer["output"][-3000:]))
    return report.finish(options.json)


def _cases(keys: list[TextKey], options: Any) -> Iterator[tuple[str, str, str]]:
    """Yield (stage, cluster, name of a value)."""
    names = list(VALUES)
    if options.count is not None:
        names = random.Random(options.seed).sample(names, min(options.count, len(names)))
    kinds = list(CLUSTERS)
    for number, stage in enumerate(dict.fromkeys(key.stage for key in keys)):
        for cluster in kinds if options.count is None else [kinds[(options.seed + number) % len(kinds)]]:
            for name in names if not options.only else [options.only.split(":")[2]]:
                if not options.only or any(options.only.startswith(f"{key}:") and key.stage == stage for key in keys):
                    yield stage, cluster, name


class _Trial:
    """One hostile text in many keys at once: those that are refused by name are left out and the rest tried again.

    A launch that goes wrong is repeated with halves of its keys, down to the one that makes it so.
    """

    def __init__(self, keys: list[TextKey], name: str, cluster: str, tools: Path, keep: bool) -> None:
        self.keys, self.name, self.cluster, self.tools, self.keep = keys, name, cluster, tools, keep

    def verdicts(self) -> Iterator[dict[str, Any]]:
        """Yield the outcome of the text in each key."""
        left = self.keys
        while left:
            launch = self._launch(left, VALUES[self.name])
            named = [key for key in left if launch.refused and launch.names(key)]
            problem = launch.problem(self._plain)
            if problem is None and named:
                yield from (self._verdict(key, "refused") for key in named)
                left = [key for key in left if key not in named]
                continue
            if len(left) > 1 and (problem is not None or launch.refused):
                for half in (left[: len(left) // 2], left[len(left) // 2 :]):
                    yield from _Trial(half, self.name, self.cluster, self.tools, self.keep).verdicts()
            else:
                for key in left:
                    yield self._verdict(key, "refused" if launch.refused else "passed_through", problem, launch)
            return

    def _plain(self, keys: list[TextKey]) -> _Launch:
        """Return a launch with a plain text in those of the keys that accept one."""
        while True:
            launch = self._launch(keys, PLAIN)
            named = [key for key in keys if launch.refused and launch.names(key)]
            if not named or named == keys:
                return launch
            keys = [key for key in keys if key not in named]

    def _launch(self, keys: list[TextKey], value: str) -> _Launch:
        launch = _Launch(keys, value, self.cluster, self.tools)
        if not self.keep:
            shutil.rmtree(launch.folder)
        return launch

    def _verdict(self, key: TextKey, outcome: str, problem: str | None = None, launch: Any = None) -> dict[str, Any]:
        output = launch.ended.output if problem else ""
        return {
            "key": str(key),
            "value": self.name,
            "cluster": self.cluster,
            "outcome": outcome,
            "problem": problem,
            "output": output,
        }


def _write_tools(root: Path) -> Path:
    """Write the recorders; python's also records its environment, and fails without its configuration."""
    tools = root / "bin"
    tools.mkdir()
    run_behind_srun = 'while [ "$1" != bash ]; do shift; done; SLURM_PROCID=0 SLURM_LOCALID=0 exec "$@"'
    run_cmd = 'bash -c "${@: -1}"'
    record = '"$RECORD"'
    for name, more in (
        ("sbatch", "echo 101"),
        ("srun", run_behind_srun),
        ("scontrol", "echo node1"),
        ("bcprun", run_cmd),
        ("python3", _ENVIRONMENT.format(record=record)),
        *((name, "") for name in ("squeue", "sacct", "scancel", "sinfo", "kubectl")),
    ):
        first = _JOB_ALONE.format(python=shlex.quote(sys.executable)) if name == "python3" else ""
        (tools / name).write_text(_RECORDER.format(record=record, more=more, first=first))
        (tools / name).chmod(0o755)
    return tools


class _Launch:
    """One run of the launcher with a text in several keys of one stage, and everything observed about it."""

    def __init__(self, keys: list[TextKey], value: str, cluster: str, tools: Path) -> None:
        self.keys, self.value, self.cluster, self.tools = keys, value, cluster, tools
        self.folder = Path(tempfile.mkdtemp(prefix="launch-", dir=tools.parent))
        self.place = self.folder / "of" / "this" / "place"  # deep enough that ../../x stays inside this launch's folder
        (self.place / "launcher_scripts").mkdir(parents=True)
        for script in ("train.py", "evaluate.py", "convert_hf2nemo.py", "prepare_data.py"):
            (self.place / "launcher_scripts" / script).touch()
        shutil.copy(REPOSITORY / "launcher_scripts" / "start_ranks.py", self.place / "launcher_scripts")
        write_base(self.place / "base.nemo")
        self.ended = in_child(self._launch, self.folder / "log")
        self.refused = self.ended.status == 2
        self.scripts = sorted(self.folder.rglob("*_submission.sh"))
        if CLUSTERS[cluster].queues and self.ended.status == 0:
            for script in self.scripts:
                environment = self._environment() | {"SLURM_JOB_NODELIST": "node1", "SLURM_JOB_ID": "7"}
                environment |= {"SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1"}
                self.bash = subprocess.run(
                    ["bash", str(script)], cwd=self.place, env=environment, capture_output=True, check=False, timeout=60
                )
        self.calls = _recorded(self.folder / "record")
        self.texts, self.shapes = list(self._texts()), [_shape(line) for line in self._script_lines()]
        self.wrong = self.ended.problem() or self._executed() or self._wrong_call()

    def _environment(self) -> dict[str, str]:
        keep = {name: os.environ[name] for name in ("HOME", "LANG", "OMP_NUM_THREADS", "TMPDIR") if name in os.environ}
        path = f"{self.tools}:/usr/bin:/bin"
        return keep | {
            "PATH": path,
            "RECORD": str(self.folder / "record"),
            "PYTHONPATH": str(REPOSITORY),
            "NL_NAME": "x",
        }

    def _launch(self) -> int:
        """Run the launcher like main.py."""
        environment = self._environment()
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(self.place)
        SquadBuilder.is_prepared = lambda self, source_dir, output_dir: True  # type: ignore[method-assign]
        sys.executable = str(self.tools / "python3")
        stage, base = self.keys[0].stage, self.place / "base.nemo"
        arguments = [
            f"stages=[{stage}]",
            f"cluster_type={self.cluster}",
            "preflight=off",
            f"launcher_scripts_path={self.place}/launcher_scripts",
            f"base_results_dir={self.place}/results",
            f"data_dir={self.place}/data",
        ]
        arguments += NEEDED.get(self.cluster, [])
        if stage in ("adapter_learning", "ia3_learning"):
            arguments += [f"{stage}.model.language_model_path={base}", f"{stage}.model.tensor_model_parallel_size=1"]
        if stage == "evaluation":
            arguments += [f"evaluation.language_model_path={base}", f"evaluation.adapter_model_file={base}"]
            arguments += ["evaluation.tensor_model_parallel_size=1"]
        if stage == "conversion_hf2nemo":
            arguments += [
                f"conversion_hf2nemo.model.hf_model_path={self.place}",
                "conversion_hf2nemo.run.model_train_name=x",
            ]
        if stage in ("adapter_learning", "ia3_learning", "evaluation"):
            arguments += [f"{stage}.trainer.devices=1", f"{stage}.trainer.accelerator=cpu"]
        sys.argv = ["main.py", *arguments, *(key.override(_quoted(self.value)) for key in self.keys)]
        raise SystemExit(launcher())

    # --- what was seen ---

    def names(self, key: TextKey) -> bool:
        """Return whether the message names a key."""
        return re.search(rf"(^|[^\w.]){re.escape(key.name)}([^\w]|$)", self.ended.output, re.MULTILINE) is not None

    def problem(self, make_plain: Callable[[list[TextKey]], _Launch]) -> str | None:
        """Return what is wrong with this launch, compared with that of a plain text; None for nothing."""
        if self.wrong or self.refused:
            return self.wrong
        plain = make_plain(self.keys)
        if plain.refused:
            return None
        names_too = any(key.form == "key" for key in self.keys)
        if plain.keys == self.keys and not names_too and sorted(plain.shapes) != sorted(self.shapes):
            return "the script has other lines than with a plain text"
        lost = [str(key) for key in plain.keys if plain.sees(key, PLAIN) and not self.sees(key, self.value)]
        return f"the text did not arrive as it was given: {lost[0]}" if lost else None

    def _wrong_call(self) -> str | None:
        """Return what is wrong with the programs that were run."""
        pythons = [call for call in self.calls if call[0].endswith("/python3")]
        if self.refused:
            return f"refused, but {pythons[0]} was run" if pythons else None
        if self.ended.status == 0 and not pythons:
            return f"the script did not run its command: {getattr(self, 'bash', '')}"
        for call in pythons:
            if call[1:2] == ["-u"] and (len(call) != 4 or not Path(call[3]).is_file()):
                return f"ran {call}"
        return None

    def _executed(self) -> str | None:
        found = list(self.folder.rglob(CANARY))
        return f"the text was executed: {found[0]}" if found else None

    def sees(self, key: TextKey, value: str) -> bool:
        """Return whether a key's text arrived unchanged in the configuration, an argument or the environment."""
        expected = {value, os.path.abspath(os.path.join(self.place, os.path.expanduser(value)))}
        if key.form == "text" and key.name.startswith(f"{key.stage}."):
            return self._configured(key.name.partition(".")[2]) in expected
        return any(text in place for text in expected for place in self.texts)

    def _configured(self, path: str) -> Any:
        """Return the value of a key in the job's configuration, or None if it is not there."""
        for value in self.configs:
            for part in path.split("."):
                value = (
                    value.get(part)
                    if isinstance(value, dict)
                    else (value or [None])[0]
                    if isinstance(value, list)
                    else None
                )
            if value is not None:
                return value
        return None

    def _script_lines(self) -> list[str]:
        return [line for script in self.scripts for line in script.read_text(encoding="utf-8").split("\n")]

    def _texts(self) -> Iterator[str]:
        for call in self.calls:
            yield from call
        for path in self.folder.glob("record.env"):
            yield from path.read_bytes().decode(errors="surrogateescape").split("\0")
        self.configs = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in self.folder.rglob("*_hydra.yaml")]
        for config in self.configs:
            yield from _leaves(config)
        for path in self.folder.rglob("*_k8s.json"):
            yield from (text.replace("$$(", "$(") for text in _leaves(json.loads(path.read_text(encoding="utf-8"))))
        for line in self._script_lines():
            if line.startswith("#SBATCH "):
                yield from (word.replace("%%", "%") for word in _split(line.removeprefix("#SBATCH ")))


def _recorded(path: Path) -> list[list[str]]:
    if not path.exists():
        return []
    calls = path.read_bytes().decode(errors="surrogateescape").split("\0\0\0")
    return [call.split("\0") for call in calls if call]


def _leaves(tree: Any) -> Iterable[str]:
    if isinstance(tree, dict):
        for key, item in tree.items():
            yield str(key)
            yield from _leaves(item)
    elif isinstance(tree, list):
        for item in tree:
            yield from _leaves(item)
    else:
        yield str(tree)


def _split(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:
        return [line]


def _shape(line: str) -> str:
    """Return the kind of a script line: its first word, or the option of a header line."""
    return re.match(r"(#SBATCH --[\w-]*|\s*[\w-]*)", line)[0]  # type: ignore[index]


def _quoted(value: str) -> str:
    """Return a text quoted for Hydra's command line: backslashes before a quote or at the end are doubled."""
    text = re.sub(r"(\\*)'", lambda found: f"{found[1] * 2}\\'", value)
    text = re.sub(r"(\\+)$", lambda found: found[1] * 2, text)
    return f"'{text}'"


if __name__ == "__main__":
    sys.exit(main())
