# SPDX-License-Identifier: Apache-2.0
"""The model card of an export: scores and licence as their sources have them, and unknown without a source."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from nemo_launcher.adapters.forms.folded import export_folded
from nemo_launcher.adapters.forms.peft import export_peft
from nemo_launcher.checkpoint.gguf_model import GGUFModel
from nemo_launcher.conversion.convert import convert
from nemo_launcher.conversion.licence import licence_of
from nemo_launcher.errors import UserError
from nemo_launcher.families.base import load_base
from tests import forms

pytestmark = pytest.mark.unit

FIGURES = {
    "confidence": 0.95,
    "resamples": 1000,
    "metrics": {"exact_match": {"title": "exact match", "is_share": True, "higher_is_better": True}},
    "questions": 60,
    "adapter": {"exact_match": {"value": 0.6, "low": 0.474, "high": 0.714, "questions": 60}},
    "base": {"exact_match": {"value": 0.05, "low": 0.01, "high": 0.14, "questions": 60}},
}
CARD = "---\nlicense: {licence}\nlicense_name: own-1\nlicense_link: LICENSE\n---\n# A model\n"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    forms.make_base(folder, "llama_head_dim")
    return folder


def write_results(folder: Path, adapter: Path, figures: Any = FIGURES) -> Path:
    """Write what an evaluation of an adapter writes; return the job folder."""
    (folder / "results").mkdir(parents=True)
    data = {"data_paths": [{"path": "/data/test.jsonl", "sha256": "cd34"}]}
    record = {"adapter": {"sha256": hashlib.sha256(adapter.read_bytes()).hexdigest()}, "data": data}
    (folder / "results/provenance.json").write_text(json.dumps(record))
    (folder / "results/predictions_metrics.json").write_text(json.dumps(figures))
    return folder


def with_licence(source: Path, folder: Path, files: dict[str, str]) -> Path:
    """Return the base that is converted from the source with these files beside it."""
    shutil.copytree(source / "hf", folder / "hf")
    for name, content in files.items():
        (folder / "hf" / name).write_text(content)
    convert(folder / "hf", folder / "base.nemo")
    return folder / "base.nemo"


def test_scores_are_in_the_text_with_intervals_and_in_the_metadata(source: Path, tmp_path: Path) -> None:
    adapter = forms.make_adapter(tmp_path / "a.nemo", source / "base.nemo", "ia3")
    results = write_results(tmp_path / "eval", adapter)
    export_folded(adapter, source / "base.nemo", tmp_path / "out", results=results)
    card = ModelCard.load(tmp_path / "out/README.md")
    assert "| exact match | 60 | 60.0% | 47.4% to 71.4% | 5.0% | 1.0% to 14.0% |" in card.text
    assert "- test.jsonl, sha256 cd34" in card.text
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("exact_match", 0.6, "test.jsonl")
    assert result.dataset_args == {"sha256": ["cd34"]}


def test_a_base_from_the_hub_is_named(source: Path, tmp_path: Path) -> None:
    adapter = forms.make_adapter(tmp_path / "a.nemo", source / "base.nemo", "ia3")
    export_peft(adapter, source / "base.nemo", tmp_path / "local")
    assert ModelCard.load(tmp_path / "local/README.md").data.base_model is None

    snapshot = tmp_path / "hub/models--own--tiny/snapshots/0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(source / "hf", snapshot)
    convert(snapshot, tmp_path / "base.nemo")
    adapter = forms.make_adapter(tmp_path / "b.nemo", tmp_path / "base.nemo", "ia3")
    export_peft(adapter, tmp_path / "base.nemo", tmp_path / "out")
    assert ModelCard.load(tmp_path / "out/README.md").data.base_model == "own/tiny"


def test_scores_by_task_and_undefined_ones(source: Path, tmp_path: Path) -> None:
    undefined = {"exact_match": {"value": None, "low": None, "high": None, "questions": 0}}
    tasks = {"boolq": {"adapter": {"f1": {"value": 0.5, "low": None, "high": None, "questions": 2}}}}
    adapter = forms.make_adapter(tmp_path / "a.nemo", source / "base.nemo", "lora")
    results = write_results(tmp_path / "eval", adapter, FIGURES | {"adapter": undefined, "tasks": tasks})
    export_peft(adapter, source / "base.nemo", tmp_path / "out", results / "results/predictions_metrics.json")
    card = ModelCard.load(tmp_path / "out/README.md")
    assert "| f1, boolq | 2 | 0.5 | unknown | not measured |  |" in card.text
    assert [result.dataset_name for result in card.data.eval_results] == ["boolq"]


def test_scores_of_another_adapter_and_missing_ones_are_refused(source: Path, tmp_path: Path) -> None:
    adapter = forms.make_adapter(tmp_path / "a.nemo", source / "base.nemo", "ia3")
    other = tmp_path / "b.nemo"
    other.write_bytes(b"another")
    cases = [
        (write_results(tmp_path / "other", other), "the scores of another adapter"),
        (tmp_path / "none", "does not exist"),
        (source / "hf", "has no figures of an evaluation"),
        (write_results(tmp_path / "empty", adapter, {"metrics": {}}), "has no figures of an adapter"),
    ]
    for place, words in cases:
        with pytest.raises(UserError, match=words):
            export_peft(adapter, source / "base.nemo", tmp_path / "out", place)
    results = write_results(tmp_path / "several", adapter)
    shutil.copy(results / "results/predictions_metrics.json", results / "results/p_metrics.json")
    with pytest.raises(UserError, match=r"several figures: results/p_metrics\.json, results/predictions_metrics\.json"):
        export_peft(adapter, source / "base.nemo", tmp_path / "out", results)
    (results / "results/provenance.json").unlink()
    with pytest.raises(UserError, match=r"no provenance\.json, which says whose"):
        export_peft(adapter, source / "base.nemo", tmp_path / "out", results / "results/p_metrics.json")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("files", "words", "metadata"),
    [
        ({"README.md": CARD.format(licence="other")}, "is other: own-1 (LICENSE), according to its README.md", "other"),
        ({"README.md": "---\nlicense: mit\n---\n", "LICENSE": "Else"}, "is mit, according to its README.md", "mit"),
        ({"README.md": "# No metadata", "LICENSE.md": "\n# Own  Licence 2\ntext"}, "is Own Licence 2, according", None),
        ({"README.md": "---\nlicense: [unclosed\n---\n"}, "licence of the base model is unknown", None),
        ({"README.md": "---\nlicense: <b>x</b>\n---\n"}, "is <b>x</b>", None),
        ({}, "licence of the base model is unknown", None),
    ],
)
def test_the_licence_is_the_sources(
    files: dict[str, str], words: str, metadata: str | None, source: Path, tmp_path: Path
) -> None:
    base = with_licence(source, tmp_path, files)
    adapter = forms.make_adapter(tmp_path / "a.nemo", base, "ia3")
    export_folded(adapter, base, tmp_path / "out")
    card = ModelCard.load(tmp_path / "out/README.md", ignore_metadata_errors=True)
    assert words in card.text
    assert card.data.license == metadata
    export_peft(adapter, base, tmp_path / "peft")
    peft = ModelCard.load(tmp_path / "peft/README.md", ignore_metadata_errors=True)
    assert words in peft.text
    assert peft.data.license is None


def test_a_gguf_file_names_its_licence_in_its_metadata() -> None:
    metadata: dict[str, object] = {"general.license": "other", "general.license.name": "own-1", "general.name": "x"}
    found = licence_of(GGUFModel(Path("/models/m.gguf"), {}, {}, {}, metadata))
    assert found == {"id": "other", "name": "own-1", "source": "m.gguf"}
    assert licence_of(GGUFModel(Path("m.gguf"), {}, {}, {}, {})) == {}


def test_the_training_has_its_data_and_results_and_only_its_own(source: Path, tmp_path: Path) -> None:
    base = source / "base.nemo"
    adapter = forms.make_adapter(tmp_path / "a.nemo", base, "ia3")
    data = {"train_ds": [{"path": "/data/own.jsonl", "sha256": "ab12"}]}
    record = {"base": {"checksum": load_base(base).checksum}, "data": data}
    (tmp_path / "provenance.json").write_text(json.dumps(record))
    summary = {"steps": 1200, "best_val_loss": 0.51234, "adapter_path": "/results/a.nemo"}
    (tmp_path / "training_summary.json").write_text(json.dumps(summary))
    export_peft(adapter, base, tmp_path / "out")
    text = (tmp_path / "out/README.md").read_text()
    for row in (
        "train_ds | own.jsonl, sha256 ab12",
        "steps | 1,200",
        "best validation loss, nats per answer token | 0.51",
    ):
        assert row in text
    assert "Unknown: no evaluation was named." in text
    (tmp_path / "provenance.json").write_text(json.dumps(record | {"base": {"checksum": "another"}}))
    export_peft(adapter, base, tmp_path / "again")
    text = (tmp_path / "again/README.md").read_text()
    assert "| data | unknown |" in text
    assert "1,200" not in text
