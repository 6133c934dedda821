# SPDX-License-Identifier: Apache-2.0
"""Training from a data cache: identical adapters in one process, with workers, and on two ranks."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.adapters.archive import read_adapter
from nemo_launcher.data.cache import FOLDER_NAME
from nemo_launcher.errors import UserError
from nemo_launcher.runtime import ranks
from tests import t5
from tests.caches import ByteTokenizer, files_in, gpt_encoder, load
from tests.engine import squad_records, write_jsonl, write_squad
from tests.jobs import job_config, run_script
from tests.world import run_job, run_world

pytestmark = pytest.mark.integration


def adapter_of(config: Any, folder: Path) -> dict[str, Any]:
    """Train, and return the resulting adapter."""
    job = run_script("train", config, folder)
    assert job.status == 0, job.output
    return read_adapter(Path(config["model"]["nemo_path"]))[1]


@pytest.mark.parametrize("family", ["gpt", "t5"])
def test_adapters_are_those_without_a_cache(family: str, tiny_base: Path, tmp_path: Path) -> None:
    if family == "t5":
        data, base, job = t5.write_data(tmp_path / "data"), t5.tiny_base(tmp_path / "base.nemo"), t5.training_config
    else:
        data, base, job = write_squad(tmp_path / "data"), tiny_base, job_config
    adapters, caches = {}, {}
    for name, cache_dir in {"without": False, "first": None, "second": None}.items():
        changes = {"model.data.cache_dir": cache_dir, "trainer.max_epochs": 1}
        changes |= {"model.data.num_workers": int(family == "gpt" and name == "second")}
        adapters[name] = adapter_of(job(base, data, tmp_path / name, changes), tmp_path / name)
        caches[name] = {path.name: path.stat().st_ino for path in (data / FOLDER_NAME).glob("*")}
    assert [len(files) for files in caches.values()] == [0, 2, 2]  # of training and validation
    assert caches["second"] == caches["first"]
    torch.testing.assert_close(adapters["first"], adapters["without"], rtol=0, atol=0)
    torch.testing.assert_close(adapters["second"], adapters["without"], rtol=0, atol=0)


def test_two_ranks_make_one_cache(tiny_base: Path, tmp_path: Path) -> None:
    data = write_squad(tmp_path / "data")
    config = job_config(tiny_base, data, tmp_path / "out", {"trainer.devices": 2, "trainer.max_epochs": 1})
    for _ in range(2):
        jobs = run_job(2, "train", config, tmp_path / "out")
        assert [job.status for job in jobs] == [0, 0], jobs
        assert len(files_in(data / FOLDER_NAME)) == 2
        shutil.rmtree(tmp_path / "out")


class Gate(ByteTokenizer):
    """Blocks encoding until the other rank is about to look for the cache."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.gate = folder / "gate"

    def text_to_ids(self, text: str) -> list[int]:
        if self.num_encoded == 0:
            self.gate.read_text()  # a pipe: returns once the other end was opened and closed
        return super().text_to_ids(text)


def _rank_loads(folder: Path) -> None:
    ranks.init_process_group()
    data, follows = [folder / "data.jsonl"], ranks.rank() == 1
    tokenizer = ByteTokenizer() if follows else Gate(folder)
    if follows:
        (folder / "gate").write_text("")
    try:
        samples = load(data, gpt_encoder(tokenizer=tokenizer), folder / "cache")
        print(f"{len(samples)} samples, {tokenizer.num_encoded > 0}")
    except UserError as error:
        print(error)
    ranks.destroy_process_group()


@pytest.mark.parametrize("broken", [False, True])
def test_the_first_rank_of_a_node_goes_first(broken: bool, tmp_path: Path) -> None:
    """The second one waits for its cache, and encodes itself if the first one found a mistake."""
    data = write_jsonl(tmp_path / "data.jsonl", squad_records(2000))
    if broken:
        data.write_text(data.read_text().replace('"answer"', '"reply"', 1))
    os.mkfifo(tmp_path / "gate")
    first, second = run_world(2, _rank_loads, (tmp_path,), tmp_path / "logs")
    assert (first.status, second.status) == (0, 0)
    if broken:
        assert "data.jsonl:1: no field 'answer'" in first.output
        assert "data.jsonl:1: no field 'answer'" in second.output
    else:
        assert "2000 samples, True" in first.output
        assert "2000 samples, False" in second.output
