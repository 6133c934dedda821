# SPDX-License-Identifier: Apache-2.0
"""Both sides of a benchmark compute the same, and a row holds what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import workloads
from benchmarks.adapter_weights import Part, largest_difference, rows_by_group
from benchmarks.records import SQUAD, Records, squad_records
from benchmarks.training_ours import Ours
from benchmarks.training_peer import Peer
from tests.benchmarks.bases import make_bases, side_options, write_squad


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bases(tmp_path_factory.mktemp("bases"))


def sides(options: dict[str, Any], squad: Path) -> tuple[Ours, Peer]:
    squad_records(squad, 8).save(Path(options["records_path"]))
    ours = Ours(options)
    assert ours.encode()["samples"] == 8
    return ours, Peer(options)


@pytest.mark.unit
@pytest.mark.parametrize("method", workloads.METHODS)
@pytest.mark.parametrize("family", workloads.FAMILIES)
def test_gradients_are_those_of_plain_transformers(family, method, bases, tmp_path):
    squad = write_squad(tmp_path / "squad.json", length=20)
    both = sides(side_options(tmp_path, bases, family, method=method), squad)
    paths = [tmp_path / "ours", tmp_path / "peer"]
    losses = [side.gradients(str(path))["loss"] for side, path in zip(both, paths, strict=True)]
    gradients = [torch.load(path, weights_only=True) for path in paths]

    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert largest_difference(*gradients) < 1e-4  # rounding; a wrong weight makes it about 1
    assert all(float(gradient.abs().max()) > 0 for gradient in gradients[0].values())


@pytest.mark.unit
def test_every_layout_and_mode_trains_on_all_records(bases, tmp_path):
    options = side_options(tmp_path, bases, "gpt", epochs=2)
    ours, peer = sides(options, write_squad(tmp_path / "squad.json", length=20))

    for settings in ({}, {"layout": "fixed"}, {"share_prefix": False}, {"pack": False}):
        assert ours.train(**settings)["seconds_per_sample"] > 0
    for mode in ("default", "best", "plain"):
        assert peer.train(mode) == {"seconds_per_sample": pytest.approx(0, abs=60), "samples": 16}
        assert peer.train(mode, part=3)["samples"] == 8  # a batch of four, twice
    assert {*ours.warm_up()} == {"calibration_seconds", "cold_seconds"}
    layout = ours.layout()
    assert layout["computed_tokens"] < layout["sample_tokens"]  # paragraphs are shared


@pytest.mark.unit
def test_records_beyond_the_context_are_dropped_and_counted(bases, tmp_path):
    lengths = [20, 2000, 30, 3000, 20]
    records = [{"context": "the " * length, "question": "a", "answer": "b"} for length in lengths]
    Records(SQUAD, records).save(tmp_path / "records.json")
    ours = Ours(side_options(tmp_path, bases, "gpt"))

    encoded = ours.encode()

    assert (encoded["dropped"], encoded["samples"]) == (2, 3)
    assert len(json.loads((tmp_path / "samples.json").read_text(encoding="utf-8"))) == 3
    ours.options["records"] = 1
    assert ours.encode()["samples"] == 1


@pytest.mark.unit
def test_a_part_in_several_parameters_is_one_tensor():
    value = torch.arange(12.0).view(6, 2)
    order = rows_by_group([4, 2], groups=2)
    fused = torch.nn.Parameter(torch.zeros(6, 2))
    apart = [torch.nn.Parameter(torch.zeros(rows, 2)) for rows in (4, 2)]
    copies = [torch.nn.Parameter(torch.zeros(6, 2)) for _ in range(2)]
    parts = {"fused": Part([fused], order=order), "apart": Part(apart), "copies": Part(copies, copies=True)}
    for part in parts.values():
        assert part.shape == value.shape
        part.assign(value)
        for parameter in part.parameters:
            parameter.grad = parameter.detach().clone()

    assert order.tolist() == [0, 1, 4, 2, 3, 5]
    assert torch.equal(fused, value[order])
    assert torch.equal(parts["fused"].gradient(), value)
    assert torch.equal(parts["apart"].gradient(), value)
    assert torch.equal(parts["copies"].gradient(), 2 * value)


@pytest.mark.integration
@pytest.mark.extended
def test_a_run_writes_rows_with_all_figures(bases, tmp_path, capsys):
    squad, out = write_squad(tmp_path / "squad.json", length=20), tmp_path / "out.json"
    arguments = ["--squad", str(squad), "--folder", str(bases), "--json", str(out), "--threads", "1", "--rounds", "1"]
    arguments += ["--pairs", "2"]
    long = tmp_path / "long.jsonl"
    record = {"text": "the " * 2000, "label": "a"}
    long.write_text(json.dumps(record) + "\n", encoding="utf-8")

    with pytest.raises(SystemExit, match="1"):
        workloads.main([*arguments, "--only", "one_record,generation_one,sixteen", "--sixteen-file", str(long)])

    content = json.loads(out.read_text(encoding="utf-8"))
    sixteen, training, generation = sorted(content["rows"], key=lambda row: row["workload"], reverse=True)
    for row in (training, generation):
        for figure in ("ratio_without_startup", "memory_ratio", "our_seconds_per_record", "pass_seconds"):
            assert row[figure]
        assert row["counts_startup"]
        assert {*row["startup_seconds"]} == {*row["cold_seconds"]} >= {"ours", "plain"}
        assert (row["samples"], row["peer_records"], row["dropped"]) == (1, 1, 0)
    assert training["ratio_plain"] > 0
    assert training["gradient_difference"] < 1e-4
    assert {*training["layouts"]} == {"default", "layout=fixed", "pack=False", "share_prefix=False", "neither"}
    assert training["calibration_seconds"] > 0
    assert generation["ratio"] > 0
    assert generation["same_tokens"] == 1.0
    assert "no record fits into the base's context" in sixteen["failed"]
    assert {row["dtype"] for row in content["products"]} == {"fp32", "bf16"}
    assert all(row["gflops"] > 0 for row in content["products"])
    assert "| one_record |" in capsys.readouterr().out
