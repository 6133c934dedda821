# SPDX-License-Identifier: Apache-2.0
"""Loading a base checkpoint: mismatches are reported, and nothing crashes."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.checkpoint.archive import CONFIG_NAME, TOKENIZER_FOLDER, WEIGHTS_NAME, Archive
from nemo_launcher.checkpoint.archive_writer import write_archive
from nemo_launcher.checkpoint.tensors import read_tensors
from nemo_launcher.errors import UserError
from nemo_launcher.families.base import load_base

pytestmark = pytest.mark.unit


def rewritten(
    source: Path,
    target: Path,
    *,
    weights: Callable[[Any], Any] = lambda weights: weights,
    config: dict[str, Any] | None = None,
    tokenizer: bool = True,
) -> Path:
    """Write `source` again with other weights or configuration keys (None: omit the key)."""
    with Archive(source) as archive:
        stored = weights(read_tensors(archive, WEIGHTS_NAME))
        settings = archive.config() | (config or {})
        names = archive.names - {CONFIG_NAME, WEIGHTS_NAME} if tokenizer else set()
        members: dict[str, Any] = {name: archive.open(name).read() for name in names}
    members[WEIGHTS_NAME] = lambda stream: torch.save(stored, stream)
    write_archive(target, {key: value for key, value in settings.items() if value is not None}, members)
    return target


def problems_of(path: Path) -> str:
    with pytest.raises(UserError) as error:
        load_base(path)
    assert all(path.name in problem.where for problem in error.value.problems)
    return str(error.value)


def test_gzip_tar_and_extracted_folder_load_alike(tiny_base: Path, tmp_path: Path) -> None:
    wanted = load_base(tiny_base).model.state_dict()
    with tarfile.open(tiny_base) as tar:
        tar.extractall(tmp_path / "folder", filter="data")
    with tarfile.open(tmp_path / "gzip.nemo", "w:gz") as tar:
        tar.add(tmp_path / "folder", arcname=".")
    for name in ("folder", "gzip.nemo"):
        base = load_base(tmp_path / name)
        assert base.tokenizer.text_to_ids("near the river")
        torch.testing.assert_close(base.model.state_dict(), wanted, rtol=0, atol=0)


def test_everything_is_frozen_and_in_eval_mode(tiny_base: Path) -> None:
    model = load_base(tiny_base).model
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())


def test_dtype_applies_to_every_weight(tiny_base: Path) -> None:
    model = load_base(tiny_base, dtype=torch.bfloat16).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_absent_extra_and_misshapen_weights_are_all_named(tiny_base: Path, tmp_path: Path) -> None:
    def change(weights: dict[str, Any]) -> dict[str, Any]:
        del weights["model.decoder.layers.1.mlp.linear_fc2.weight"]
        weights["model.decoder.layers.7.mlp.linear_fc2.weight"] = torch.ones(2)
        weights["model.decoder.final_layernorm.weight"] = torch.ones(31)
        return weights

    text = problems_of(rewritten(tiny_base, tmp_path / "a.nemo", weights=change))
    assert "decoder.layers.1.mlp.linear_fc2.weight: is absent" in text
    assert "decoder.layers.7.mlp.linear_fc2.weight: does not exist in the model" in text
    assert "decoder.final_layernorm.weight: has shape (31,), but the configuration implies (32,)" in text


def test_weights_of_another_family_are_named(tiny_base: Path, tmp_path: Path) -> None:
    path = rewritten(tiny_base, tmp_path / "a.nemo", weights=lambda w: w | {"enc_dec_model.x": torch.ones(1)})
    assert "enc_dec_model.x" in problems_of(path)


@pytest.mark.parametrize(
    "weights",
    [
        {},
        pytest.param([torch.ones(1)], id="list"),
        pytest.param(torch.ones(1), id="tensor"),
        pytest.param({"model.embedding.word_embeddings.weight": "text"}, id="text_value"),
        pytest.param({"model.embedding.word_embeddings.weight": torch.tensor(1.0)}, id="scalar"),
        pytest.param({3: torch.ones(1)}, id="number_key"),
    ],
)
def test_weights_of_a_wrong_form_are_refused(weights: Any, tiny_base: Path, tmp_path: Path) -> None:
    problems_of(rewritten(tiny_base, tmp_path / "a.nemo", weights=lambda _: weights))


def test_absent_weights_file_is_named(tiny_base: Path, tmp_path: Path) -> None:
    with Archive(tiny_base) as archive:
        members = {n: archive.open(n).read() for n in archive.names if n.startswith(TOKENIZER_FOLDER)}
        write_archive(tmp_path / "a.nemo", archive.config(), members)
    assert "model_weights.ckpt: is absent" in problems_of(tmp_path / "a.nemo")


def test_absent_tokenizer_is_named_with_the_way_out(tiny_base: Path, tmp_path: Path) -> None:
    text = problems_of(rewritten(tiny_base, tmp_path / "a.nemo", tokenizer=False))
    assert "carries no tokenizer" in text
    assert "conversion_hf2nemo" in text


def test_broken_tokenizer_is_named(tiny_base: Path, tmp_path: Path) -> None:
    with Archive(tiny_base) as archive:
        members = {name: archive.open(name).read() for name in archive.names if name != "model_config.yaml"}
        config = archive.config()
    members["tokenizer/tokenizer.json"] = b'{"version": "1.0", '
    write_archive(tmp_path / "a.nemo", config, members)
    problems_of(tmp_path / "a.nemo")


def test_tokenizer_of_another_model_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    def cut(weights: dict[str, Any]) -> dict[str, Any]:
        name = "model.embedding.word_embeddings.weight"
        return weights | {name: weights[name][:100].clone()}

    assert "the embedding has 100 rows" in problems_of(rewritten(tiny_base, tmp_path / "a.nemo", weights=cut))


def test_all_unusable_settings_are_named_at_once(tiny_base: Path, tmp_path: Path) -> None:
    changes = {"num_layers": None, "activation": "swiglo", "position_embedding_type": "kerple", "headscale": True}
    text = problems_of(rewritten(tiny_base, tmp_path / "a.nemo", config=changes))
    assert "num_layers: is absent" in text
    assert "did you mean 'swiglu'?" in text
    assert "position_embedding_type: 'kerple' is not supported" in text
    assert "headscale: True is not supported" in text


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 31},
        pytest.param({"num_layers": "two"}, id="text"),
        pytest.param({"num_attention_heads": 0}, id="no_heads"),
    ],
)
def test_settings_without_sense_are_refused(changes: dict[str, Any], tiny_base: Path, tmp_path: Path) -> None:
    problems_of(rewritten(tiny_base, tmp_path / "a.nemo", config=changes))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_truncated_base_is_refused(share: float, tiny_base: Path, tmp_path: Path) -> None:
    content = tiny_base.read_bytes()
    (tmp_path / "a.nemo").write_bytes(content[: int(share * len(content))])
    problems_of(tmp_path / "a.nemo")


# --- numbers and sizes ------------------------------------------------------------------------------------------------

PROJECTION = "model.decoder.layers.1.mlp.linear_fc2.weight"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named_with_its_count(value: float, tiny_base: Path, tmp_path: Path) -> None:
    def change(weights: dict[str, Any]) -> dict[str, Any]:
        weight = weights[PROJECTION].clone()
        weight[3, 5] = weight[0, 0] = value
        return weights | {PROJECTION: weight}

    text = problems_of(rewritten(tiny_base, tmp_path / "a.nemo", weights=change))
    assert "decoder.layers.1.mlp.linear_fc2.weight: 2 of 1,536 values are NaN or infinite" in text


def test_a_quantized_weight_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    rounded = rewritten(
        tiny_base, tmp_path / "a.nemo", weights=lambda w: w | {PROJECTION: w[PROJECTION].to(torch.int8)}
    )
    assert "decoder.layers.1.mlp.linear_fc2.weight: has numbers of type int8" in problems_of(rounded)


def test_numbers_that_are_stored_negated_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    negated = rewritten(
        tiny_base, tmp_path / "a.nemo", weights=lambda w: w | {PROJECTION: torch._neg_view(w[PROJECTION])}
    )
    assert "negated or conjugated values" in problems_of(negated)


def test_a_weight_under_two_names_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    twin = PROJECTION.replace("model.", "module.", 1)
    twice = rewritten(tiny_base, tmp_path / "a.nemo", weights=lambda w: w | {twin: w[PROJECTION] + 1})
    text = problems_of(twice)
    assert "also holds under another name" in text or "not this family's" in text


def test_the_way_out_of_a_number_that_nothing_holds_is_another_copy(tiny_base: Path, tmp_path: Path) -> None:
    large = rewritten(
        tiny_base, tmp_path / "a.nemo", weights=lambda w: w | {PROJECTION: w[PROJECTION].double() * 1e300}
    )
    text = problems_of(large)
    assert "exceeds the range of float32" in text
    assert "use precision" not in text


def test_a_weight_beyond_fp16_is_named(tiny_base: Path, tmp_path: Path) -> None:
    large = rewritten(tiny_base, tmp_path / "a.nemo", weights=lambda w: w | {PROJECTION: w[PROJECTION] * 0 + 1e5})
    load_base(large, dtype=torch.bfloat16)
    with pytest.raises(UserError, match=r"linear_fc2\.weight: holds 1e\+05, which exceeds the range of float16"):
        load_base(large, dtype=torch.float16)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"num_layers": 9_999}, "num_layers (decoder): is 9,999, but the weights have 2 layers"),
        ({"hidden_size": 1_048_576, "kv_channels": 8}, ", 1048576)"),
        ({"ffn_hidden_size": 4_000_000}, "the configuration implies (8000000, 32)"),
        ({"num_attention_heads": 1_000_000, "kv_channels": 8}, "linear_qkv.weight"),
        ({"hidden_size": 10**12}, "hidden_size: 1000000000000 is not a whole number from 1 to"),
        ({"num_layers": 10**9}, "num_layers: 1000000000 is not a whole number from 1 to"),
        ({"max_position_embeddings": 2**62}, "max_position_embeddings"),
    ],
)
def test_sizes_without_weights_are_refused_before_they_are_allocated(
    changes: dict[str, Any], word: str, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = rewritten(tiny_base, tmp_path / "a.nemo", config=changes)
    monkeypatch.setattr(
        "nemo_launcher.families.gpt.model.FrozenGPT.__init__", lambda *_, **__: pytest.fail("a model is made")
    )
    assert word in problems_of(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layernorm_epsilon", "x"),
        ("layernorm_epsilon", float("nan")),
        ("rotary_base", [1]),
        ("bias", "no"),
        ("tokenizer", "huggingface"),
        ("tokenizer", [1, 2]),
        ("tokenizer", 3),
        ("encoder", "text"),
        ("hidden_size", 32.5),
        ("hidden_size", True),
        ("num_layers", [2]),
        ("activation", {"name": "gelu"}),
        ("tensor_model_parallel_size", "two"),
        ("pipeline_model_parallel_size", -1),
        ("peft", "ia3"),
        ("adapter_tuning", 4),
        ("task_templates", {"a": 1}),
        ("task_templates", [1]),
        ("window_size", "all"),
        ("target", 7),
        ("kv_channels", 0),
        ("seq_len_interpolation_factor", 0),
    ],
)
def test_a_key_of_another_type_is_named_wherever_it_is_read(
    key: str, value: Any, tiny_base: Path, tmp_path: Path
) -> None:
    from nemo_launcher.adapters.archive import read_adapter
    from nemo_launcher.checkpoint.outline import read_outline
    from nemo_launcher.inspection import inspect

    path = rewritten(tiny_base, tmp_path / "a.nemo", config={key: value})
    for read in (load_base, inspect, read_outline, read_adapter):
        with pytest.raises(UserError, match=rf"a\.nemo: {key}"):
            read(path)


def test_an_empty_tokenizer_section_is_told(tiny_base: Path, tmp_path: Path) -> None:
    assert "carries no tokenizer" in problems_of(rewritten(tiny_base, tmp_path / "a.nemo", config={"tokenizer": {}}))
