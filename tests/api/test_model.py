# SPDX-License-Identifier: Apache-2.0
"""Model: the results of the console verbs, exact changes of the adapter, errors, and a clean process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher import Generation, Model, Score, UserError
from nemo_launcher.adapters.archive import save_adapter
from nemo_launcher.cli import main
from tests import t5
from tests.engine import adapted, squad_records, write_jsonl
from tests.jobs import REPOSITORY, job_config
from tests.methods import METHODS, model_section

TEMPLATE = {"template": "{context} {question} {answer}", "answer_field": "answer"}
PROMPTS = ["Anna lives in", "the inn is", "Anna lives in the"]


def adapter_of(base: Path, method: str, folder: Path, seed: int = 0) -> Path:
    """Return a random adapter of a base, with the templates of a SQuAD training."""
    folder.mkdir(parents=True, exist_ok=True)
    section = {
        key: value for key, value in job_config(base, folder, folder)["model"].items() if key != "adapter_tuning"
    }
    section |= model_section(method) | {"seed": seed}
    loaded, adapters = adapted(base, section)
    with torch.no_grad():
        for number, parameter in enumerate(adapters.parameters()):
            parameter.copy_(
                parameter + torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed + number))
            )
    save_adapter(folder / "a.nemo", section | {"base_fingerprint": loaded.fingerprint}, adapters.state_dict())
    return folder / "a.nemo"


@pytest.fixture(scope="module")
def adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapter_of(tiny_base, METHODS[0], tmp_path_factory.mktemp("first"))


def results_of(model: Model, records: Sequence[dict[str, Any]]) -> tuple[list[Score], list[Generation]]:
    """Return the exact scores and answers of a model for records."""
    return model.score(records, **TEMPLATE), model.generate(records, **TEMPLATE, tokens_to_generate=4)


# --- results ----------------------------------------------------------------------------------------------------


@pytest.mark.unit
def test_it_returns_what_the_console_command_prints(
    tiny_base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Model.load(tiny_base, adapter=adapter)
    data = write_jsonl(tmp_path / "questions.jsonl", squad_records(6))
    files = ["--base", str(tiny_base), "--adapter", str(adapter)]
    capsys.readouterr()
    assert main(["generate", *files, "--jsonl", str(data), "--top-k", "5", "--tokens-to-generate", "6"]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.split("\n")[:-1]]
    for records in (data, squad_records(6)):
        answers = model.generate(records, top_k=5, tokens_to_generate=6)
        assert answers == [Generation(line["prediction"], line["token_ids"]) for line in printed]
    assert main(["score", *files, str(data)]) == 0
    scores = [Score(**json.loads(line)) for line in capsys.readouterr().out.split("\n")[:-1]]
    assert model.score(data) == model.score(squad_records(6)) == scores
    assert main(["generate", *files, "--json", *(word for prompt in PROMPTS for word in ("--prompt", prompt))]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.split("\n")[:-1]]
    assert [answer.token_ids for answer in model.generate(PROMPTS)] == [line["token_ids"] for line in printed]


@pytest.mark.unit
def test_settings_are_those_of_the_console_command(tiny_base: Path, adapter: Path) -> None:
    plain = Model.load(tiny_base, adapter=adapter)
    changed = Model.load(tiny_base, adapter=adapter, settings={"inference.tokens_to_generate": 2, "data.add_bos": True})
    assert {len(answer.token_ids) for answer in changed.generate(PROMPTS)} == {2}
    assert changed.score(squad_records(2)) != plain.score(squad_records(2))
    assert Model.load(tiny_base, dtype=torch.bfloat16)._session.base.dtype == torch.bfloat16
    assert Model.load(tiny_base, dtype="bf16", device="cpu")._session.base.dtype == torch.bfloat16


# --- one base, many adapters --------------------------------------------------------------------------------------


@pytest.mark.unit
@pytest.mark.parametrize("family", ["gpt", "t5"])
def test_a_changed_adapter_is_exactly_a_fresh_one(family: str, tiny_base: Path, tmp_path: Path) -> None:
    """Every method is loaded after every kind of site has been used, and leaves nothing behind."""
    base = tiny_base if family == "gpt" else t5.tiny_base(tmp_path / "base.nemo")
    settings = {"data.decoder_starts_with_pad": True} if family == "t5" else {}
    records = squad_records(3)
    frozen = results_of(Model.load(base, settings=settings), records)
    swapped = Model.load(base, settings=settings)
    for number, method in enumerate(METHODS):
        adapter = adapter_of(base, method, tmp_path / method, seed=number)
        swapped.load_adapter(adapter)
        assert swapped.adapter == adapter
        found = results_of(swapped, records)
        assert found == results_of(Model.load(base, adapter=adapter, settings=settings), records)
        assert found[0] != frozen[0]
    swapped.unload_adapter()
    assert swapped.adapter is None
    assert results_of(swapped, records) == frozen
    names = {name for name, _ in swapped._session.base.model.named_modules()}
    assert not [name for name in names if "adapter_layer" in name]


@pytest.mark.unit
def test_an_adapter_brings_its_own_prompts(tiny_base: Path, adapter: Path) -> None:
    model = Model.load(tiny_base)
    with pytest.raises(UserError, match="template: is required without an adapter"):
        model.score(squad_records(2))
    model.load_adapter(adapter)
    assert len(model.score(squad_records(2))) == 2
    model.unload_adapter()
    with pytest.raises(UserError):
        model.score(squad_records(2))


@pytest.mark.unit
def test_a_failed_change_leaves_the_model_as_it_was(tiny_base: Path, adapter: Path, tmp_path: Path) -> None:
    model = Model.load(tiny_base, adapter=adapter)
    before = results_of(model, squad_records(3))
    (tmp_path / "broken.nemo").write_bytes(adapter.read_bytes()[:4000])
    for wrong in (tiny_base, tmp_path / "broken.nemo", tmp_path / "absent.nemo"):
        with pytest.raises(UserError):
            model.load_adapter(wrong)
        assert model.adapter == adapter
        assert results_of(model, squad_records(3)) == before


# --- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.unit
def test_errors_name_the_arguments(tiny_base: Path) -> None:
    model = Model.load(tiny_base)

    def told(call: Any) -> str:
        with pytest.raises(UserError) as error:
            call()
        assert "--" not in str(error.value)
        return str(error.value)

    one = squad_records(1)
    template = "template='question: {question} answer: {answer}', answer_field='answer'"
    assert template in told(lambda: model.score(one))
    assert told(lambda: model.generate(["x", ""])).startswith("prompts[1]: has 0 tokens")
    assert told(lambda: model.generate(["x"], top_p=2.0)).startswith("top_p: 2.0 is out of range")
    assert told(lambda: model.generate("x")).startswith("prompts: is one text")
    assert "tokens_to_generate" in told(lambda: model.generate(["the inn " * 500]))
    assert told(lambda: model.generate(["x"], batch_size=0)).startswith("batch_size: 0")
    assert told(lambda: model.score(["x"])).startswith("records: [0] is str")
    assert told(lambda: model.score([])).startswith("records: is empty")
    assert told(lambda: model.score([{"context": "a"}], **TEMPLATE)).startswith("records[0]: no field 'question'")
    assert "dtype: unknown precision 'fp32'" in told(lambda: Model.load(tiny_base, dtype="fp32"))
    assert told(lambda: Model.load(tiny_base, device="gpu")).startswith("device: no such device: 'gpu'")
    wrong = told(lambda: Model.load(tiny_base, settings={"data.add_bos": "maybe", "data.ad_eos": True}))
    assert [line.split(": ")[1] for line in wrong.splitlines() if line[0] != " "] == ["data.add_bos", "data.ad_eos"]


@pytest.mark.unit
def test_all_problems_of_the_records_are_in_the_exception(tiny_base: Path) -> None:
    records = [*squad_records(1), {"context": "a", "question": 5, "answer": "b"}, {"context": "a", "question": "q"}]
    with pytest.raises(UserError) as error:
        Model.load(tiny_base).score(records, **TEMPLATE)
    assert [problem.where for problem in error.value.problems] == ["records[1]", "records[2]"]


# --- a clean process ----------------------------------------------------------------------------------------------


@pytest.mark.unit
def test_it_leaves_the_process_as_it_was(tiny_base: Path, adapter: Path) -> None:
    def state() -> list[object]:
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
        ranks = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        return [
            handlers,
            ranks,
            list(warnings.filters),
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.get_rng_state().tolist(),
            [thread.name for thread in threading.enumerate()],
        ]

    before = state()
    model = Model.load(tiny_base, adapter=adapter)
    model.generate(PROMPTS)
    model.score(squad_records(2))
    with pytest.raises(UserError):
        model.generate(["x"], top_k=-1)
    model.unload_adapter()
    assert state() == before


@pytest.mark.integration
def test_imports_and_use_are_silent(tiny_base: Path) -> None:
    code = f"""
import sys
import nemo_launcher
assert not {{"torch", "omegaconf", "argparse"}} & sys.modules.keys()
nemo_launcher.__version__, dir(nemo_launcher)
from nemo_launcher import Model
assert "torch" not in sys.modules
model = Model.load({str(tiny_base)!r})
assert model.generate(["Anna lives in"]) == model.generate(["Anna lives in"])
"""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.unit
def test_an_unknown_name_is_an_attribute_error() -> None:
    import nemo_launcher

    with pytest.raises(AttributeError, match="has no attribute 'Modell'"):
        _ = nemo_launcher.Modell
    assert all(getattr(nemo_launcher, name) for name in nemo_launcher.__all__)
