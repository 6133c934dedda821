# SPDX-License-Identifier: Apache-2.0
"""Models of the Hugging Face Hub in a launch: fetched from a stand-in into the hub's cache, pinned, and converted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from nemo_launcher.checkpoint.hub_model import HubModel, local_source, model_named, model_of, title_of
from nemo_launcher.errors import UserError
from tests.archives import GPT, write_base
from tests.gguf_files import write_gguf
from tests.hub import COMMIT, Hub, serving
from tests.hugging_face import CONFIG, write_folder, write_safetensors
from tests.workplace import Launch, Workplace

NAME = "own/tiny"
KEY = "conversion_hf2nemo.model.hf_model_path"
COPY = """
source = pathlib.Path(config["model"]["hf_model_path"])
path = pathlib.Path(config["model"]["nemo_path"])
path.parent.mkdir(parents=True, exist_ok=True)
path.write_text(str(sorted(file.name for file in source.iterdir())) if source.is_dir() else source.read_text("latin1"))
"""


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder of models: a Llama, a model of an unsupported architecture, and one in GGUF files."""
    folder = tmp_path / "hub"
    tiny = write_folder(folder / NAME)
    (tiny / "README.md").write_text("---\nlicense: mit\n---\n")
    (tiny / "modeling_own.py").write_text("raise SystemExit('foreign code')")
    (tiny / "pytorch_model.bin").write_bytes(b"the same weights in another form")
    write_folder(folder / "own/other", architectures=["OwnForCausalLM"])
    (folder / "own/other/README.md").write_text("")
    files = folder / "own/files"
    files.mkdir()
    for name in ("tiny-Q8_0.gguf", "tiny-F16.gguf"):
        (files / name).write_bytes(b"GGUF" + name.encode())
    (files / "README.md").write_text("")
    return folder


@pytest.fixture
def hub(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The stand-in, to which HF_ENDPOINT points."""
    with serving(models) as hub:
        for name, value in {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}.items():
            monkeypatch.setenv(name, value)
        yield hub


def _arguments(workplace: Workplace, source: str, *more: str) -> list[str]:
    workplace.stub("convert_hf2nemo.py", COPY)
    return [
        *("stages=[conversion_hf2nemo]", "conversion_hf2nemo=hf", "conversion_hf2nemo.run.model_train_name=tiny"),
        *(f"launcher_scripts_path={workplace.scripts}", f"base_results_dir={workplace.results}"),
        *(f"data_dir={workplace.root / 'data'}", f"{KEY}='{source}'", *more),
    ]


def _another(number: int) -> str:
    """Return the option of a launch into another folder."""
    return f"conversion_hf2nemo.run.model_train_name=again_{number}"


def _source(workplace: Workplace) -> str:
    (config_file,) = workplace.results.rglob("*_hydra.yaml")
    return str(yaml.safe_load(config_file.read_text())["model"]["hf_model_path"])


@pytest.mark.unit
@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("Qwen/Qwen3-0.6B", HubModel("Qwen/Qwen3-0.6B")),
        ("hf:gpt2", HubModel("gpt2")),
        ("hf:a/b?revision=v1&file=x/b.gguf", HubModel("a/b", "v1", "x/b.gguf")),
        *((text, None) for text in ("/models/llama", "./a/b", "../a/b", "gpt2", "a/b/c", "a/b.gguf", "~/b", "a/")),
    ],
)
def test_names_and_paths(text: str, model: HubModel | None) -> None:
    assert model_named(text, KEY) == model


@pytest.mark.unit
def test_a_folder_on_this_machine_is_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    assert model_named("models/lama", KEY) is None


@pytest.mark.unit
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hf:./a", "'./a' is not a name on the hub"),
        ("hf:a/b?revison=v1", "did you mean 'revision'?"),
        ("hf:a/b?file=b.bin", "'b.bin' is not a .gguf file"),
        ("hf:a/b?file=../b.gguf", "'../b.gguf' is not a .gguf file"),
        ("hf:a/b?revision=", "revision has no value"),
        ("hf:a/b?revision=../../etc", "'../../etc' is not a revision"),
    ],
)
def test_mistakes_in_a_name(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words.replace("?", r"\?")):
        model_named(text, KEY)


@pytest.mark.unit
def test_a_folder_in_the_cache_has_the_name_of_its_model() -> None:
    snapshot = Path("/cache/hub/models--Qwen--Qwen3-0.6B/snapshots") / COMMIT
    assert model_of(snapshot) == HubModel("Qwen/Qwen3-0.6B", COMMIT)
    assert model_of(snapshot / "b.gguf") == HubModel("Qwen/Qwen3-0.6B", COMMIT, "b.gguf")
    assert title_of(snapshot) == "Qwen/Qwen3-0.6B"
    assert (model_of(Path("/models/snapshots") / COMMIT), title_of(Path("/models/own"))) == (None, "own")


@pytest.mark.unit
def test_a_dry_run_fetches_nothing(launch: Launch, workplace: Workplace, hub: Hub) -> None:
    result = launch(*_arguments(workplace, NAME, "debug=True"))
    assert result.status == 0, result.err
    assert f"hf:{NAME}: is fetched at launch, to the hub's cache" in result.out
    assert not hub.requests
    assert _source(workplace) == f"hf:{NAME}"


@pytest.mark.unit
def test_a_job_that_finds_no_model_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="run `hf download own/tiny --revision v1` where there is a network"):
        local_source(f"hf:{NAME}?revision=v1", KEY)
    folder = tmp_path / "models--own--tiny"
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text(COMMIT)
    assert local_source(NAME, KEY) == folder / "snapshots" / COMMIT


@pytest.mark.integration
def test_fetched_once_pinned_and_read_offline(
    launch: Launch, workplace: Workplace, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = _arguments(workplace, NAME)
    result = launch(*arguments)
    assert result.status == 0, result.err
    source = workplace.root / "home/hub/models--own--tiny/snapshots" / COMMIT
    assert _source(workplace) == str(source)
    assert f"hf:{NAME}: commit {COMMIT}, in {source}" in result.out
    assert "own/tiny is a LlamaForCausalLM of 1 layers" in result.out
    (base,) = workplace.results.rglob("*.nemo")
    assert base.read_text() == "['README.md', 'config.json', 'model.safetensors', 'tokenizer.json']"

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked = len(hub.requests)
    again = launch(*arguments, _another(1))
    assert again.status == 0, again.err
    assert len(hub.requests) == asked


@pytest.mark.integration
def test_a_base_that_another_job_made_from_the_model_is_no_foreign_file(
    launch: Launch, workplace: Workplace, hub: Hub
) -> None:
    base = workplace.root / "own.nemo"
    arguments = _arguments(workplace, NAME, f"conversion_hf2nemo.model.nemo_path={base}")
    for source, status in (("own/other", 2), (NAME, 0)):
        write_base(base, GPT | {"converted_from": {"file": source}})
        result = launch(*arguments)
        assert result.status == status, result.err
        assert (f"{base} already exists, and this job did not make it" in result.err) is (status == 2)


@pytest.mark.integration
def test_offline_the_cache_is_used_if_it_is_whole(
    launch: Launch, workplace: Workplace, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = _arguments(workplace, NAME)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused = launch(*arguments)
    assert refused.status == 2
    assert "HF_HUB_OFFLINE forbids to fetch it" in refused.err
    assert f"run `hf download {NAME}` where there is a network" in refused.err
    assert not list(workplace.results.rglob("*_hydra.yaml"))

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert launch(*arguments).status == 0
    shutil.rmtree(workplace.root / "data")  # as if another program had filled the cache
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    found = launch(*arguments, _another(1))
    assert found.status == 0, found.err

    shutil.rmtree(workplace.root / "data")
    (workplace.root / "home/hub/models--own--tiny/snapshots" / COMMIT / "model.safetensors").unlink()
    refused = launch(*arguments, _another(2))
    assert refused.status == 2
    assert "cannot be fetched" in refused.err


@pytest.mark.integration
def test_what_cannot_be_converted_costs_no_download(launch: Launch, workplace: Workplace, hub: Hub) -> None:
    result = launch(*_arguments(workplace, "own/other"))
    assert result.status == 2
    assert "OwnForCausalLM" in result.err
    assert not [path for path in hub.requests if path.endswith(".safetensors")]
    assert not list(workplace.results.rglob("*_hydra.yaml"))


@pytest.mark.integration
def test_a_language_model_is_asked_for_before_the_download(launch: Launch, workplace: Workplace, hub: Hub) -> None:
    config = {key: value for key, value in CONFIG.items() if key not in ("architectures", "dtype")}
    whole = {"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3"}
    folder = hub.folder / NAME
    (folder / "config.json").write_text(json.dumps(whole | {"text_config": config | {"model_type": "mistral"}}))
    names = ("model.language_model.norm.weight", "model.vision_tower.ln_pre.weight")
    write_safetensors(folder / "model.safetensors", dict.fromkeys(names, ("F32", (8,), bytes(32))))
    refused = launch(*_arguments(workplace, NAME))
    assert refused.status == 2
    option = "conversion_hf2nemo.model.hf_language_model=True"
    assert f"add {option}" in refused.err
    assert not [path for path in hub.requests if path.endswith(".safetensors")]
    result = launch(*_arguments(workplace, NAME, option))
    assert result.status == 0, result.err
    assert "without 1 tensors of its other parts" in result.out
    (write_folder(hub.folder / "own/text") / "README.md").write_text("")
    assert "is a language model already" in launch(*_arguments(workplace, "own/text", option)).err


@pytest.mark.integration
def test_a_file_of_several_is_chosen_by_name(launch: Launch, workplace: Workplace, hub: Hub) -> None:
    result = launch(*_arguments(workplace, "own/files"))
    assert result.status == 2
    assert "choose one: hf:own/files?file=tiny-F16.gguf or hf:own/files?file=tiny-Q8_0.gguf" in result.err
    gguf = hub.folder / "own/files/tiny-F16.gguf"
    write_gguf(gguf)
    chosen = launch(*_arguments(workplace, "hf:own/files?file=tiny-F16.gguf"))
    assert chosen.status == 0, chosen.err
    assert Path(_source(workplace)).name == "tiny-F16.gguf"
    assert not [path for path in hub.requests if path.endswith("Q8_0.gguf")]


@pytest.mark.integration
def test_refusals_of_the_hub(launch: Launch, workplace: Workplace, hub: Hub) -> None:
    hub.gated.add(NAME)
    refused = launch(*_arguments(workplace, NAME))
    assert "is gated" in refused.err
    assert "hf auth login" in refused.err
    assert "the hub has no public model 'own/none'" in launch(*_arguments(workplace, "own/none")).err
    hub.gated.clear()
    assert "has no revision 'v9'" in launch(*_arguments(workplace, f"hf:{NAME}?revision=v9")).err


@pytest.mark.integration
def test_parts_by_their_index(launch: Launch, workplace: Workplace, hub: Hub) -> None:
    folder = hub.folder / NAME
    part = "model-00001-of-00001.safetensors"
    (folder / part).write_bytes((folder / "model.safetensors").read_bytes())
    index = {"metadata": {}, "weight_map": {"model.norm.weight": part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    result = launch(*_arguments(workplace, NAME))
    assert result.status == 0, result.err
    assert not [path for path in hub.requests if path.endswith(("/model.safetensors", ".bin", ".py"))]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index | {"weight_map": {"a": "../../b"}}))
    shutil.rmtree(workplace.root / "home")
    refused = launch(*_arguments(workplace, NAME, _another(1)))
    assert "model.safetensors.index.json lists absent files: ../../b" in refused.err
