# SPDX-License-Identifier: Apache-2.0
"""Adapters in the format of NeMo 1.21 and later: flat names, and a `peft` section in the base's configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nemo_launcher.adapters.archive import load_adapter, read_adapter
from nemo_launcher.adapters.injection import AdapterState
from nemo_launcher.adapters.registry import methods
from nemo_launcher.adapters.settings import Split
from nemo_launcher.checkpoint.archive import WEIGHTS_NAME, read_config
from nemo_launcher.checkpoint.archive_writer import write_archive
from nemo_launcher.errors import UserError
from nemo_launcher.families.base import load_base
from nemo_launcher.inspection import inspect
from tests import oracle
from tests.engine import TEMPLATE, adapted, squad_records, write_jsonl, write_squad
from tests.jobs import evaluation_config, job_config, run_script
from tests.methods import model_section, schemes

pytestmark = pytest.mark.unit

LAYERS = {
    "mcore": "model.decoder.layers.",
    "mcore_O2": "model.module.decoder.layers.",
    "legacy": "model.language_model.encoder.layers.",
    "legacy_O2": "model.module.language_model.encoder.layers.",
}
SCHEMES = schemes()
TRAIN_DATA = {
    "prompt_template": TEMPLATE.replace(" question", "\\nquestion"),
    "label_key": "answer",
    "truncation_field": "context,question",
    "add_eos": True,
    "add_bos": True,
    "max_seq_length": 200,
}


def flat(state: AdapterState, layers: str) -> dict[str, Tensor]:
    """Return a state under the names of `named_parameters` in NeMo's model."""
    return {
        f"{key.replace('model.language_model.encoder.layers.', layers).replace(':', '.adapter_layer.')}.{name}": tensor
        for key, tensors in state.items()
        for name, tensor in tensors.items()
    }


def peft_config(base: Path, scheme: str, **settings: Any) -> dict[str, Any]:
    """Return the configuration of a NeMo 1.23 tuning job, which includes the base's."""
    sections: dict[str, dict[str, Any]] = {
        methods()[method].section: {**block_of(method), "layer_selection": None} for method in SCHEMES.values()
    }
    sections["adapter_tuning"] |= {"type": "linear_adapter", "weight_tying": False}  # its type decides nothing
    if scheme in SCHEMES:
        sections[methods()[SCHEMES[scheme]].section] |= settings
    peft = {"peft_scheme": scheme, "restore_from_path": None, **sections}
    own = {"restore_from_path": str(base), "peft": peft, "answer_only_loss": True, "data": {"train_ds": TRAIN_DATA}}
    return read_config(base) | own


def save(path: Path, config: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]) -> Path:
    write_archive(path, config, {name: lambda f, part=part: torch.save(dict(part), f) for name, part in files.items()})
    return path


def block_of(method: str) -> dict[str, Any]:
    return dict(model_section(method).get("adapter_tuning", {}))


def trained(base: Path, scheme: str) -> AdapterState:
    return adapted(base, model_section(SCHEMES[scheme]))[1].state_dict()


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_naming_is_read(scheme: str, layers: str, tiny_base: Path, tmp_path: Path) -> None:
    state = trained(tiny_base, scheme)
    files = {WEIGHTS_NAME: flat(state, LAYERS[layers])}
    path = save(tmp_path / "a.nemo", peft_config(tiny_base, scheme), files)
    adapters, config = load_adapter(path, load_base(tiny_base))
    torch.testing.assert_close(adapters.state_dict(), state, rtol=0, atol=0)
    assert adapters.method.name == SCHEMES[scheme]
    assert config["language_model_path"] == str(tiny_base)


INFUSED = {".self_attention:key_infused_adapter", ".self_attention:value_infused_adapter", ".mlp:mlp_infused_adapter"}


@pytest.mark.parametrize("name", [name for name in oracle.LAYER_CASES if name in SCHEMES])
def test_the_names_are_those_of_nemos_mixins(name: str, tmp_path: Path) -> None:
    weights = {
        f"model.decoder.layers.0.{key}": weight for key, weight in oracle.load("mcore_layer")[name]["adapter"].items()
    }
    path = save(tmp_path / "a.nemo", {"peft": {"peft_scheme": name}}, {WEIGHTS_NAME: weights})
    state = read_adapter(path)[1]
    found = {key.removeprefix("model.language_model.encoder.layers.0") for key in state}
    assert found == (INFUSED if name == "ia3" else {":adapter_1", ":adapter_2"})
    assert sum(tensor.numel() for tensors in state.values() for tensor in tensors.values()) == sum(
        weight.numel() for weight in weights.values()
    )


def stage_files(*stages: AdapterState) -> dict[str, dict[str, Any]]:
    return {f"tp_rank_00_pp_rank_{n:03d}/{WEIGHTS_NAME}": flat(part, LAYERS["mcore"]) for n, part in enumerate(stages)}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_selected_layers_count_from_1(scheme: str, tiny_base: Path, tmp_path: Path) -> None:
    """NeMo's layer 2 is layer 1 here; the first pipeline stage has no adapters."""
    upper = {key: tensors for key, tensors in trained(tiny_base, scheme).items() if ".1" in key}
    local = {key.replace("layers.1", "layers.0"): tensors for key, tensors in upper.items()}
    config = peft_config(tiny_base, scheme, layer_selection=[2])
    alone = {WEIGHTS_NAME: flat(upper, LAYERS["mcore"])}
    stages = {
        f"tp_rank_00_pp_rank_{n:03d}/{WEIGHTS_NAME}": flat(part, LAYERS["mcore"]) for n, part in enumerate(({}, local))
    }
    for name, files in (("alone.nemo", alone), ("stages.nemo", stages)):
        adapters, _ = load_adapter(save(tmp_path / name, config, files), load_base(tiny_base))
        torch.testing.assert_close(adapters.state_dict(), upper, rtol=0, atol=0)
        assert adapters.settings.layers == "1"


def test_stages_with_unknown_layer_numbers_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    upper = {k: v for k, v in trained(tiny_base, "ia3").items() if ".1" in k}
    files = {
        f"tp_rank_00_pp_rank_{n:03d}/{WEIGHTS_NAME}": flat(part, LAYERS["mcore"]) for n, part in enumerate(({}, upper))
    }
    config = peft_config(tiny_base, "ia3", layer_selection=[2])
    del config["num_layers"]
    with pytest.raises(
        UserError, match=r"a\.nemo: has adapters in some layers only, in files of several pipeline stages"
    ):
        read_adapter(save(tmp_path / "a.nemo", config, files))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_ranks_are_put_together(scheme: str, tiny_base: Path, tmp_path: Path) -> None:
    """Two tensor-parallel ranks of two pipeline stages, each of which numbers its single layer 0."""
    state = trained(tiny_base, scheme)
    placements = {placement.name: placement for placement in methods()[SCHEMES[scheme]].settings.PLACEMENTS}
    files = {}
    for stage in range(2):
        own = {
            k.replace(f"layers.{stage}", "layers.0"): tensors for k, tensors in state.items() if f"layers.{stage}" in k
        }
        for rank in range(2):
            part = {
                key: {n: part_of(t, placements[key.rpartition(":")[2]].splits.get(n), rank) for n, t in tensors.items()}
                for key, tensors in own.items()
            }
            files[f"tp_rank_{rank:02d}_pp_rank_{stage:03d}/{WEIGHTS_NAME}"] = flat(part, LAYERS["mcore"])
    path = save(tmp_path / "a.nemo", peft_config(tiny_base, scheme), files)
    torch.testing.assert_close(read_adapter(path)[1], state, rtol=0, atol=0)


def part_of(tensor: Tensor, split: Split | None, rank: int) -> Tensor:
    """Return what one of two ranks holds; of a gate and an up-projection that lie beside each other, its part of each.

    The base has a gate.
    """
    if split is None:
        return tensor
    halves = tensor.chunk(2, split.dimension) if split.has_gate else (tensor,)
    return torch.cat([half.chunk(2, split.dimension)[rank] for half in halves], split.dimension)


def test_inspect_tells_what_it_is(tiny_base: Path, tmp_path: Path) -> None:
    files = {WEIGHTS_NAME: flat(trained(tiny_base, "adapter"), LAYERS["mcore"])}
    facts = inspect(save(tmp_path / "a.nemo", peft_config(tiny_base, "adapter"), files))
    assert (facts["kind"], facts["method"]) == ("adapter for a GPT model", "parallel_adapter")
    assert facts["base"] == str(tiny_base)
    assert facts["trainable_parameters"] == 4 * (2 * 4 * 32 + 2 * 32)


def test_a_base_that_was_tuned_whole_is_still_a_base(tiny_base: Path, tmp_path: Path) -> None:
    from tests.checkpoint.test_base import rewritten

    path = rewritten(tiny_base, tmp_path / "b.nemo", config={"peft": {"peft_scheme": "none"}})
    assert load_base(path).family.name == "gpt"
    with pytest.raises(UserError, match=r"b\.nemo: is a base model, not an adapter"):
        read_adapter(path)


# --- the prompts that it was trained with -----------------------------------------------------------------------


@pytest.mark.integration
def test_an_evaluation_uses_its_prompt_template(tiny_base: Path, tmp_path: Path) -> None:
    files = {WEIGHTS_NAME: flat(trained(tiny_base, "adapter"), LAYERS["mcore"])}
    path = save(tmp_path / "a.nemo", peft_config(tiny_base, "adapter"), files)
    data = write_squad(tmp_path / "data")
    job = run_script("evaluate", evaluation_config(tiny_base, path, data, tmp_path), tmp_path)
    assert job.status == 0, job.output
    first = (tmp_path / "results/predictions.txt").read_text().splitlines()[0]
    record = squad_records(1, seed=1)[0]
    assert first.startswith(f"context: {record['context']} question: {record['question']} answer:")


def test_records_need_no_taskname(tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from nemo_launcher.cli import main

    files = {WEIGHTS_NAME: flat(trained(tiny_base, "adapter"), LAYERS["mcore"])}
    path = save(tmp_path / "a.nemo", peft_config(tiny_base, "adapter"), files)
    records = [{key: record[key] for key in record if key != "taskname"} for record in squad_records(3)]
    questions = write_jsonl(tmp_path / "questions.jsonl", records)
    assert main(["score", "--base", str(tiny_base), "--adapter", str(path), str(questions)]) == 0
    assert len([json.loads(line)["nll_sum"] for line in capsys.readouterr().out.splitlines()]) == 3


@pytest.mark.integration
def test_training_goes_on_from_it(tiny_base: Path, tmp_path: Path) -> None:
    state = trained(tiny_base, "adapter")
    path = save(tmp_path / "a.nemo", peft_config(tiny_base, "adapter"), {WEIGHTS_NAME: flat(state, LAYERS["mcore"])})
    changes = {"model.restore_path": str(path), "trainer.max_steps": 1, "model.optim.lr": 1e-30}
    job = run_script("train", job_config(tiny_base, write_squad(tmp_path / "data"), tmp_path, changes), tmp_path)
    assert job.status == 0, job.output
    torch.testing.assert_close(read_adapter(tmp_path / "results/adapter.nemo")[1], state, rtol=0, atol=0)


# --- refusing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "settings", "words"),
    [
        ("ptuning", {}, "peft.peft_scheme: 'ptuning' is not supported"),
        ("adapter", {"weight_tying": True}, "peft.adapter_tuning.weight_tying: True is not supported"),
        *(
            (scheme, {"layer_selection": [0]}, rf"{methods()[method].section}.layer_selection: \[0\] is not a list")
            for scheme, method in SCHEMES.items()
        ),
    ],
)
def test_what_is_not_supported_is_named(
    scheme: str, settings: dict[str, Any], words: str, tiny_base: Path, tmp_path: Path
) -> None:
    files = {WEIGHTS_NAME: flat(trained(tiny_base, "ia3"), LAYERS["mcore"])}
    path = save(tmp_path / "a.nemo", peft_config(tiny_base, scheme, **settings), files)
    with pytest.raises(UserError, match=words):
        read_adapter(path)


def test_it_is_refused_as_a_base(tiny_base: Path, tmp_path: Path) -> None:
    files = {WEIGHTS_NAME: flat(trained(tiny_base, "ia3"), LAYERS["mcore"])}
    path = save(tmp_path / "a.nemo", peft_config(tiny_base, "ia3"), files)
    with pytest.raises(UserError, match=r"a\.nemo: is an adapter, not a base model"):
        load_base(path)


def test_tensors_of_another_kind_are_named(tiny_base: Path, tmp_path: Path) -> None:
    tensors = flat(trained(tiny_base, "ia3"), LAYERS["mcore"]) | {"model.embedding.prompts.weight": torch.ones(2)}
    path = save(tmp_path / "a.nemo", peft_config(tiny_base, "ia3"), {WEIGHTS_NAME: tensors})
    with pytest.raises(UserError, match=r"model\.embedding\.prompts\.weight: is not a dictionary of adapter tensors"):
        read_adapter(path)
