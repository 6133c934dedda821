# SPDX-License-Identifier: Apache-2.0
"""Text in the resolved configuration is not resolved again."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nemo_launcher.config.literal import literal_config
from nemo_launcher.files.foreign_yaml import dump_yaml
from nemo_launcher.script import load_config

pytestmark = pytest.mark.unit

TEXTS = [
    "${x}",
    "a ${oc.env:HOME} b",
    r"\${x}",
    r"\\${x}",
    r"C:\a ${",
    "${",
    "$",
    "{}",
    "${${x}}",
    "${x} and ${",
    r"plain \\ text",
    "a\nb ${x}",
    "1e5",
    "yes",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_reads_as_it_is(text: str) -> None:
    config = literal_config({"a": text, "b": [{"c": text}], "d": 1})
    assert config.a == text
    assert OmegaConf.to_container(config, resolve=True) == {"a": text, "b": [{"c": text}], "d": 1}


@pytest.mark.parametrize("text", TEXTS)
def test_a_job_reads_what_the_launcher_resolved(text: str, tmp_path: Path) -> None:
    path = tmp_path / "job_hydra.yaml"
    path.write_text(dump_yaml({"model": {"template": text}}))
    config = load_config([str(path), "model.other=1"])
    assert config["model"] == {"template": text, "other": 1}
