# SPDX-License-Identifier: Apache-2.0
"""The commands, paths and figures of README and the guides are correct."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_launcher.cli import parse
from tests.archives import write_base
from tests.documents import GUIDES, LINES, REPOSITORY, TEXTS, code_lines, commands
from tests.hugging_face import write_folder
from tests.launcher.nvidia_files import write_tree

NVIDIA_CONF = "/opt/NeMo-Megatron-Launcher/launcher_scripts/conf"
README = TEXTS["README.md"]


@pytest.mark.unit
def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE))
    named = {
        name for text in GUIDES.values() for name in re.findall(r"(?:`|^    )make ([\w-]+)", text, flags=re.MULTILINE)
    }
    assert named <= targets


@pytest.mark.unit
def test_every_path_in_backticks_exists() -> None:
    folders = "conf|nemo_launcher|launcher_scripts|tests|benchmarks|docs"
    named = {name for text in GUIDES.values() for name in re.findall(rf"`((?:{folders})/[\w/.-]*)`", text)}
    made = ("benchmarks/.bases", "launcher_scripts/results/")  # by commands
    named = {name for name in named if not name.startswith(made)}
    assert named
    assert [name for name in named if not (REPOSITORY / name).exists()] == []


@pytest.mark.unit
def test_every_file_of_the_architecture_exists() -> None:
    named = re.findall(r"`([\w/.]+\.py)`", TEXTS["docs/architecture.md"])
    files = ("main.py", "train.py", "layer.py", "config.py")  # the preceding words name their folders
    found = [name for name in named if name not in files and not (REPOSITORY / "nemo_launcher" / name).is_file()]
    assert (bool(named), found) == (True, [])


@pytest.mark.integration
@pytest.mark.parametrize("command", commands("python3 main.py"), ids=" ".join)
def test_every_launch_command_is_understood(command: list[str], tmp_path: Path) -> None:
    """With a reader's files, each command renders its scripts."""
    write_folder(tmp_path / "my-llama")
    write_base(tmp_path / "base.nemo")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/nemo-adapter-launcher.sqsh").write_bytes(b"hsqs")
    for task, folder in (("headlines", "."), ("headlines", "headlines"), ("topics", "topics"), ("", "support")):
        (tmp_path / folder).mkdir(exist_ok=True)
        record = {"taskname": task, "text": "a", "title": "b", "topic": "world"}
        record = record if task else {"prompt": "a", "completion": "b"}
        for name in ("train.jsonl", "val.jsonl", "test.jsonl"):
            (tmp_path / folder / name).write_text(json.dumps(record) + "\n")
    arguments = [re.sub(r"/(models|data)/", f"{tmp_path}/", argument) for argument in command[2:]]
    arguments = [re.sub(r"/shared\b", str(tmp_path), argument) for argument in arguments]
    arguments = [argument.replace(NVIDIA_CONF, str(tmp_path / "conf")) for argument in arguments]
    if NVIDIA_CONF in command:  # with NVIDIA's container
        write_tree(tmp_path / "conf")
        arguments.append(f"container_mounts=[{tmp_path}]")
    has_base = any("conversion" in argument or "language_model_path" in argument for argument in arguments)
    if not has_base:
        keys = {"adapter_learning": "model.language_model_path", "ia3_learning": "model.language_model_path"}
        keys |= {"evaluation": "language_model_path"}
        stages = next((argument for argument in arguments if argument.startswith("stages=")), "adapter_learning")
        arguments += [f"{stage}.{key}={tmp_path / 'base.nemo'}" for stage, key in keys.items() if stage in stages]
    arguments += ["debug=True", f"base_results_dir={tmp_path}/results"]
    arguments += [] if any(argument.startswith("cluster_type=") for argument in arguments) else ["cluster_type=bcm"]
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "main.py"), *arguments],
        capture_output=True,
        text=True,
        env=os.environ,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "debug, not launched" in done.stdout


@pytest.mark.integration
def test_the_configuration_of_the_own_task_guide_launches(tmp_path: Path) -> None:
    (block,) = re.findall(r"`my_conf/topics.yaml`:\n\n((?:    .*\n|\n(?=    ))+)", TEXTS["docs/own-task.md"])
    (record,) = [line for line in LINES if line.startswith('{"taskname": "topics"')]
    (tmp_path / "my_conf").mkdir()
    (tmp_path / "my_conf/topics.yaml").write_text(re.sub("^    ", "", block, flags=re.MULTILINE))
    for name in ("train", "val", "test"):
        other = record.replace("two", name)
        (tmp_path / f"topics_{name}.jsonl").write_text(f"{other}\n" * 20)
    base = tmp_path / "results/quickstart/convert_nemo/results/megatron_llama.nemo"
    base.parent.mkdir(parents=True)
    write_base(base)
    command = [
        "--config-dir",
        "my_conf",
        "--config-name",
        "topics",
        "debug=True",
        f"base_results_dir={tmp_path}/results",
    ]
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "main.py"), *command], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("debug, not launched") == 2
    assert "adapter_learning_topics/results/megatron_llama_adapter.nemo" in TEXTS["docs/own-task.md"]
    assert "adapter_learning_topics" in {path.name for path in (tmp_path / "results/quickstart").iterdir()}


@pytest.mark.integration
def test_a_site_of_ones_own_as_the_slurm_guide_has_it(tmp_path: Path) -> None:
    (block,) = re.findall(r"`my_conf/cluster/site.yaml`:\n\n((?:    .*\n)+)", TEXTS["docs/slurm.md"])
    (tmp_path / "my_conf/cluster").mkdir(parents=True)
    (tmp_path / "my_conf/cluster/site.yaml").write_text(re.sub("^    ", "", block, flags=re.MULTILINE))
    write_base(tmp_path / "base.nemo")
    given = ("--config-dir", "my_conf", "cluster=site", "cluster_type=bcm", f"base_results_dir={tmp_path}/results")
    base = f"adapter_learning.model.language_model_path={tmp_path}/base.nemo"
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "main.py"), *given, base, "debug=True"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    (script,) = tmp_path.glob("results/*/*/*.sh")
    lines = script.read_text().splitlines()
    assert {"#SBATCH --partition=gpu", "#SBATCH --account=my-project", "module load cuda"} <= {*lines}


@pytest.mark.unit
@pytest.mark.parametrize("command", commands("nemo-launcher"), ids=" ".join)
def test_every_console_command_is_understood(command: list[str]) -> None:
    if command[1] != "launch":  # which takes main.py's arguments: the test of the guide that shows it runs it
        parse(command[1:])


@pytest.mark.unit
def test_records_shown_are_json() -> None:
    records = [line for line in LINES if line.startswith('{"')]  # others are templates
    assert records
    assert all(isinstance(json.loads(record), dict) for record in records)
    assert all(json.loads(line)["taskname"] for line in code_lines(README) if line.startswith("{"))


@pytest.mark.unit
def test_the_figures_keep_their_promise() -> None:
    rows = re.findall(r"^\| (frozen base|base \+ \w+) \| [\d.]+% \| ([\d.]+)% \|", README, flags=re.MULTILINE)
    f1 = {name: float(value) for name, value in rows}
    assert set(f1) == {"frozen base", "base + adapter", "base + IA3"}
    assert min(f1["base + adapter"], f1["base + IA3"]) - f1["frozen base"] >= 30


@pytest.mark.unit
def test_the_readme_is_short_and_activates_the_environment_first() -> None:
    assert len(README.splitlines()) <= 120
    lines = code_lines(README)
    activation = next(i for i, line in enumerate(lines) if line.startswith(". .venv/bin/activate"))
    assert activation < next(i for i, line in enumerate(lines) if line.startswith(("python3", "nemo-launcher")))
    assert README.index("quickstart-figures") < README.index("\n## ")  # the result is on the first screen
