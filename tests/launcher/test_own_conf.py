# SPDX-License-Identifier: Apache-2.0
"""Configuration files of the user's own: --config-dir adds them to conf/, --config-path takes their folder instead."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nemo_launcher.places import CONF
from tests.workplace import Result, Workplace

pytestmark = pytest.mark.unit
Launch = Callable[..., Result]
MINE = "defaults: [/adapter_learning/gpt3/squad@_here_]\nrun: {model_train_name: of_mine}\n"


def write_mine(folder: Path, family: str = "gpt3") -> Path:
    place = folder / "adapter_learning" / family
    place.mkdir(parents=True)
    (place / "mine.yaml").write_text(MINE)
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("options", [["--config-path", "own"], ["-cp", "ABSOLUTE"], ["--config-path=own"]])
def test_a_folder_in_place_of_conf(options: list[str], launch: Launch, workplace: Workplace, here: Path) -> None:
    shutil.copytree(CONF, here / "own")
    write_mine(here / "own/more")
    shutil.copy(here / "own/more/adapter_learning/gpt3/mine.yaml", here / "own/adapter_learning/gpt3")
    options = [option.replace("ABSOLUTE", str(here / "own")) for option in options]
    # an option may stand between two overrides
    result = launch(
        *workplace.arguments[:-1], *options, workplace.arguments[-1], "adapter_learning=gpt3/mine", "debug=True"
    )
    assert result.status == 0, result.err
    assert "squad_of_mine_submission.sh" in result.out


def test_what_is_told_of_a_folder_in_place_of_conf(launch: Launch, workplace: Workplace, here: Path) -> None:
    absent = launch("--config-path", "own", *workplace.arguments)
    assert absent.status == 2
    assert "--config-path own: is not a folder" in absent.err
    write_mine(here / "own")
    incomplete = launch("--config-path", "own", *workplace.arguments, "adapter_learning=gpt3/mine")
    assert incomplete.status == 2
    assert f"--config-path {here}/own: holds no config.yaml" in incomplete.err
    assert "--config-dir" in incomplete.err
    shutil.copytree(CONF, here / "whole")
    misspelt = launch("--config-path", "whole", *workplace.arguments, "adapter_learning=gpt3/mime")
    assert f"{here}/whole/adapter_learning has no such file" in misspelt.err


def test_a_mistake_in_an_own_file_is_told_with_its_path(launch: Launch, workplace: Workplace, here: Path) -> None:
    file = write_mine(here / "own") / "adapter_learning/gpt3/mine.yaml"
    file.write_text(MINE + "model: {micro_batch_size: none}\n")
    arguments = [argument for argument in workplace.arguments if "micro_batch_size" not in argument]
    result = launch(*arguments, "--config-dir", "own", "adapter_learning=gpt3/mine", "debug=True")
    assert result.status == 2
    assert f"adapter_learning.model.micro_batch_size ({file})" in result.err


def write_main_file(folder: Path) -> Path:
    folder.mkdir()
    file = folder / "topics.yaml"
    file.write_text("defaults: [config, _self_]\nadapter_learning: {model: {micro_batch_size: none}}\n")
    return file


@pytest.mark.parametrize("name", ["topics", "topics.yaml"])
def test_a_mistake_is_told_with_the_file_that_sets_the_key(
    name: str, launch: Launch, workplace: Workplace, here: Path
) -> None:
    file = write_main_file(here / "own")
    arguments = [argument for argument in workplace.arguments[:2] if "micro_batch_size" not in argument]
    result = launch(*arguments, "--config-dir", "own", "--config-name", name, "debug=True")
    assert result.status == 2
    assert f"adapter_learning.model.micro_batch_size ({file})" in result.err
    file.write_text(file.read_text().replace("none", "8"))
    other = launch(*arguments, "--config-dir", "own", "--config-name", name, "debug=True")
    assert "adapter_learning.model.language_model_path (conf/adapter_learning/gpt3/squad.yaml)" in other.err


def test_a_misspelt_key_beside_an_own_main_file(launch: Launch, workplace: Workplace, here: Path) -> None:
    write_main_file(here / "own")
    options = ("--config-dir", "own", "--config-name", "topics")
    result = launch(*workplace.arguments, *options, "adapter_learning.trainer.max_epoch=2", "debug=True")
    assert result.status == 2
    assert "did you mean 'adapter_learning.trainer.max_epochs'?" in result.err


def test_the_folder_of_an_own_file_names_the_family(launch: Launch, workplace: Workplace, here: Path) -> None:
    write_mine(here / "own", family="mine")
    result = launch("--config-dir", "own", *workplace.arguments, "adapter_learning=mine/mine", "debug=True")
    assert result.status == 2
    assert "a file's folder names its family, as in adapter_learning/llama/mine.yaml" in result.err
