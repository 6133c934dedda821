# SPDX-License-Identifier: Apache-2.0
"""Data of the Hugging Face Hub in a launch: fetched from a stand-in, pinned, and then read without a network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
import yaml

from nemo_launcher.config.overrides import quoted
from nemo_launcher.data.hub import HubSource, fetched, manifest_of, parse_source
from nemo_launcher.data.records import read_records
from nemo_launcher.errors import UserError
from nemo_launcher.runtime.provenance import file_facts
from tests.hub import COMMIT, Hub, serving
from tests.workplace import MAKE_ADAPTER, Launch, Workplace

PREFIX = "adapter_learning."
CARD = """---
configs:
- config_name: default
  data_files:
  - {split: train, path: train.parquet}
  - {split: validation, path: validation.parquet}
dataset_info:
  features:
  - {name: context, dtype: string}
  - {name: question, dtype: string}
  - {name: answer, dtype: {class_label: {names: {'0': 'no', '1': 'yes'}}}}
  splits:
  - {name: train, num_examples: 400, num_bytes: 1}
  - {name: validation, num_examples: 60, num_bytes: 1}
---
"""


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of data sets: one with a card, one of a bare CSV file, one that needs a program."""
    folder = tmp_path_factory.mktemp("sets")
    features = {"context": "string", "question": "string"}
    columns = datasets.Features(
        {name: datasets.Value(kind) for name, kind in features.items()}
        | {"answer": datasets.ClassLabel(names=["no", "yes"])}
    )
    qa = folder / "own" / "qa"
    qa.mkdir(parents=True)
    (qa / "README.md").write_text(CARD)
    for split, first, count in (("train", 0, 400), ("validation", 1000, 60)):
        rows = [{"context": f"text {n}", "question": "q", "answer": n % 2} for n in range(first, first + count)]
        datasets.Dataset.from_list(rows, features=columns).to_parquet(qa / f"{split}.parquet")
    bare = folder / "own" / "bare"
    bare.mkdir()
    (bare / "README.md").write_text("no card")
    (bare / "train.csv").write_text("context,question,answer\n" + "".join(f"t{n},q,{n}\n" for n in range(50)))
    pairs = folder / "own" / "pairs"
    pairs.mkdir()
    (pairs / "README.md").write_text("no card")
    (pairs / "train.csv").write_text("prompt,completion\n" + "".join(f"{n} + 1 =, {n + 1}\n" for n in range(50)))
    program = folder / "own" / "program"
    program.mkdir()
    (program / "README.md").write_text("no card")
    (program / "program.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\n")
    return folder


@pytest.fixture
def hub(sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The stand-in, to which HF_ENDPOINT points."""
    with serving(sets) as hub:
        for name, value in {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}.items():
            monkeypatch.setenv(name, value)
        yield hub


def _arguments(workplace: Workplace, train: str, validation: str, *more: str) -> list[str]:
    files = [f"model.data.train_ds=[{quoted(train)}]", f"model.data.validation_ds=[{quoted(validation)}]"]
    template = '[{taskname: mine, prompt_template: "{context} {question} {answer}", answer_field: answer}]'
    files += [f"model.task_templates={template}", "model.new_tasks=[mine]", "run.task_name=mine"]
    return [*workplace.arguments, f"data_dir={workplace.root / 'data'}", *(PREFIX + file for file in files), *more]


def _problems(text: str) -> str:
    with pytest.raises(UserError) as caught:
        parse_source(text, "train_ds")
    return str(caught.value)


@pytest.mark.unit
def test_a_name_on_the_hub() -> None:
    text = "hf:own/qa?split=train[:1%]+validation&revision=v1.0&config=plain"
    source = parse_source(text, "train_ds")
    assert source == HubSource("own/qa", "train[:1%]+validation", "v1.0", "plain")
    assert str(source) == text
    other = parse_source("hf:own/qa?split=train[:1%]", "train_ds")
    assert other.file(Path("data")) != source.file(Path("data"))
    assert other.file(Path("data")).parent == Path("data/hub")


@pytest.mark.unit
def test_mistakes_in_a_name_are_told_at_once() -> None:
    assert "names no split" in _problems("hf:squad")
    found = _problems("hf:./mine?spilt=train&config=")
    assert "'./mine' is not a name on the hub" in found
    assert "did you mean 'split'?" in found
    assert "config has no value" in found
    assert "'train[1%]' is not a split" in _problems("hf:squad?split=train[1%]")
    assert "split is given twice" in _problems("hf:squad?split=train&split=test")


@pytest.mark.unit
def test_a_dry_run_fetches_nothing(launch: Launch, workplace: Workplace, hub: Hub) -> None:
    train, validation = "hf:qa?split=train[:10%]", "hf:own/qa?split=validation"
    result = launch(*_arguments(workplace, train, validation, "debug=True"))
    assert result.status == 0, result.err
    assert f"{train}: is fetched at launch" in result.out
    assert not hub.requests


@pytest.mark.unit
def test_mistakes_are_told_with_the_key(launch: Launch, workplace: Workplace, hub: Hub) -> None:
    result = launch(*_arguments(workplace, "hf:qa", "hf:own/qa?split=[", "debug=True"))
    assert result.status == 2
    assert "adapter_learning.model.data.train_ds (command line): 'hf:qa' names no split" in result.err
    assert (
        "adapter_learning.model.data.validation_ds (command line): 'hf:own/qa?split=[': '[' is not a sp" in result.err
    )


@pytest.mark.unit
def test_a_missing_quote_is_told(launch: Launch, workplace: Workplace) -> None:
    result = launch(*workplace.arguments, f"{PREFIX}model.data.train_ds=[hf:squad?split=train[:1%]]", "debug=True")
    assert result.status == 2
    assert f"quote it: '{PREFIX}model.data.train_ds=[\"hf:squad?split=train[:1%]\"]'" in result.err


@pytest.mark.unit
def test_other_readers_say_that_a_launch_fetches() -> None:
    with pytest.raises(UserError, match="which only a launch fetches"):
        next(read_records("hf:squad?split=train"))


@pytest.mark.unit
def test_provenance_names_the_source_of_a_fetched_file() -> None:
    hub_data = {"/data/a.parquet": f"hf:own/qa?split=train&revision={COMMIT}"}
    assert file_facts("/data/a.parquet", "1f", hub_data)["source"] == hub_data["/data/a.parquet"]
    assert file_facts("/data/b.jsonl", "1f", hub_data) == {"path": "/data/b.jsonl", "sha256": "1f"}


@pytest.mark.integration
def test_fetched_once_pinned_and_read_offline(
    launch: Launch, workplace: Workplace, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    workplace.stub("train.py", MAKE_ADAPTER)
    train, validation = "hf:qa?split=train[:10%]+validation[-5:]", "hf:own/bare?split=train[:20]&revision=main"
    arguments = _arguments(workplace, train, validation)
    result = launch(*arguments)
    assert result.status == 0, result.err
    source = parse_source(train, "train_ds")
    file = source.file(workplace.root / "data")
    assert f"{train}: 45 records of commit {COMMIT}" in result.out
    (config_file,) = workplace.results.rglob("*_hydra.yaml")
    config = yaml.safe_load(config_file.read_text())
    assert config["model"]["data"]["train_ds"] == [str(file)]
    assert config["run"]["hub_data"][str(file)] == f"hf:qa?split=train[:10%]+validation[-5:]&revision={COMMIT}"
    records = [record for _, record in read_records(file)]
    assert [record["context"] for record in records[39:41]] == ["text 39", "text 1055"]
    assert {record["answer"] for record in records} == {"no", "yes"}

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked = len(hub.requests)
    again = launch(*arguments, f"{PREFIX}trainer.max_epochs=9")
    assert again.status == 0, again.err
    assert len(hub.requests) == asked

    manifest_of(file).write_text(json.dumps({"source": str(source)}))  # as after a copy that was cut off
    assert fetched(source, file) is None
    refused = launch(*arguments, f"{PREFIX}trainer.max_epochs=10")
    assert refused.status == 2
    assert "HF_HUB_OFFLINE forbids" in refused.err
    assert str(manifest_of(file).parent) in refused.err


@pytest.mark.integration
def test_fetched_data_is_checked_before_the_job(launch: Launch, workplace: Workplace, hub: Hub) -> None:
    arguments = _arguments(workplace, "hf:own/qa?split=train", "hf:own/qa?split=validation")
    template = '[{taskname: mine, prompt_template: "{passage} {answer}", answer_field: answer}]'
    result = launch(*arguments, f"{PREFIX}model.task_templates={template}")
    assert result.status == 2
    assert "passage" in result.err
    assert not list(workplace.results.rglob("*_hydra.yaml"))


@pytest.mark.integration
def test_fetched_records_of_a_known_form_need_no_template(launch: Launch, workplace: Workplace, hub: Hub) -> None:
    workplace.stub("train.py", MAKE_ADAPTER)
    arguments = _arguments(workplace, "hf:own/pairs?split=train[:40]", "hf:own/pairs?split=train[40:]")
    result = launch(*arguments, f"{PREFIX}model.task_templates=[]")
    assert result.status == 0, result.err
    assert "`prompt` followed by `completion`" in result.out
    (config_file,) = workplace.results.rglob("*_hydra.yaml")
    (entry,) = yaml.safe_load(config_file.read_text())["model"]["task_templates"]
    assert entry["prompt_template"] == "{prompt}{completion}"


@pytest.mark.integration
def test_fetched_records_of_no_known_form_do(launch: Launch, workplace: Workplace, hub: Hub) -> None:
    arguments = _arguments(workplace, "hf:own/bare?split=train[:40]", "hf:own/bare?split=train[40:]")
    result = launch(*arguments, f"{PREFIX}model.task_templates=[]")
    assert result.status == 2
    assert "adapter_learning.model.task_templates: is empty" in result.err
    assert not list(workplace.results.rglob("*_hydra.yaml"))


@pytest.mark.integration
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hf:own/absent?split=train", "the hub has no public data set 'own/absent'"),
        ("hf:own/qa?split=train&revision=v9", "has no revision 'v9'"),
        ("hf:qa?split=trian", "did you mean 'train'?"),
        ("hf:bare?split=train[50:]", "corresponds to no data"),
        ("hf:program?split=train", "needs a program of its own, which is never run"),
        ("hf:bare?split=train&config=other", "name one of them: &config=NAME"),
    ],
)
def test_what_the_hub_refuses(
    launch: Launch, workplace: Workplace, hub: Hub, sets: Path, text: str, message: str
) -> None:
    result = launch(*_arguments(workplace, text, text))
    assert result.status == 2
    assert message in result.err
    assert "Traceback" not in result.err
    assert not (sets / "ran").exists()


@pytest.mark.integration
def test_a_gated_set_and_a_hub_that_does_not_answer(
    launch: Launch, workplace: Workplace, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.gated.add("own/qa")
    arguments = _arguments(workplace, "hf:own/qa?split=train", "hf:own/qa?split=train")
    assert "agree on https://huggingface.co/datasets/own/qa" in launch(*arguments).err
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    result = launch(*arguments)
    assert result.status == 2
    assert "check the network" in result.err
    assert "Traceback" not in result.err
