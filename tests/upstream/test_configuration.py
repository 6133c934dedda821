# SPDX-License-Identifier: Apache-2.0
"""Undocumented behaviour of Hydra, OmegaConf and argparse that the launcher depends on."""

from __future__ import annotations

import argparse

import pytest
from hydra._internal.utils import get_args_parser
from omegaconf import OmegaConf

from tests.upstream.leaning import leans_on

pytestmark = pytest.mark.unit


@leans_on("nemo_launcher/config/options.py", "_internal", "_option_string_actions")
@leans_on("nemo_launcher/launcher/hydra_errors.py", "_internal")
@leans_on("nemo_launcher/launcher/sweep.py", "_internal")
def test_hydras_parser_tells_options_from_overrides() -> None:
    """main.py checks its arguments, and reads the overrides of a sweep, before Hydra does."""
    parser = get_args_parser()
    assert {"--help", "--cfg", "--multirun", "-m", "--config-name", "--config-dir"} <= set(
        parser._option_string_actions
    )
    given = parser.parse_args(["-m", "--config-dir", "conf", "stages=[]", "a.b=1,2"])
    assert (given.multirun, given.config_dir, given.overrides) == (True, "conf", ["stages=[]", "a.b=1,2"])


@leans_on("nemo_launcher/launcher/compose.py", "_get_node", "_is_none", "_value")
@leans_on("nemo_launcher/launcher/shell.py", "_get_node", "_is_none", "_is_missing")
@leans_on("nemo_launcher/launcher/sweep.py", "_get_node", "_value")
def test_a_configurations_values_can_be_read_as_they_were_written() -> None:
    """Interpolations and `???` are read without resolving them, which would raise an error for missing keys."""
    config = OmegaConf.create({"a": "${b}/x", "empty": None, "asked": "???", "lines": None, "missing": "???", "b": 1})
    assert config._get_node("a")._value() == "${b}/x"
    assert config._get_node("asked")._value() == "???"
    assert config._get_node("absent") is None
    for kind in (OmegaConf.create({}), OmegaConf.create([])):
        assert not kind._is_none()
        assert not kind._is_missing()
    assert type(config)(content=None)._is_none()
    assert type(config)(content="???")._is_missing()


@leans_on("nemo_launcher/cli.py", "_actions")
def test_a_parser_lists_its_options() -> None:
    """Unknown options are reported with the nearest known one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--base")
    assert [option for action in parser._actions for option in action.option_strings] == ["-h", "--help", "--base"]
