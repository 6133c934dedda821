"""A conversion uses every tensor and fills every weight, or writes nothing; what it writes is what the source is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nemo_launcher.checkpoint import convert as conversion
from nemo_launcher.checkpoint import hf_llama
from nemo_launcher.checkpoint.archive import WEIGHTS_NAME, Archive, read_config, write_archive
from nemo_launcher.checkpoint.base import load_base
from nemo_launcher.checkpoint.convert import convert
from nemo_launcher.checkpoint.source import open_source
from nemo_launcher.checkpoint.tensors import read_tensors
from nemo_launcher.errors import UserError
from tests.engine import save_llama
from tests.shared import shared_path

pytestmark = pytest.mark.unit

Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose head is its embedding, and the base made of it beside it. Treat as read-only."""
    folder = save_llama(tmp_path_factory.mktemp("tied") / "hf", head_dim=16, hidden_size=16, intermediate_size=16)
    convert(folder, folder.parent / "base.nemo")
    return folder


def changed(folder: Path, target: Path, change: Callable[[Weights], Weights], **config: Any) -> Path:
    """Copy a folder, its tensors and configuration changed."""
    shutil.copytree(folder, target)
    weights = change(load_file(target / "model.safetensors"))
    save_file(weights, target / "model.safetensors")
    own = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(own | config))
    return target


def stored_weights(path: Path) -> Weights:
    with Archive(path) as archive:
        return {name: weight.clone() for name, weight in read_tensors(archive, WEIGHTS_NAME).items()}


def prefixed(prefix: str) -> Callable[[Weights], Weights]:
    return lambda weights: {f"{prefix}{name}": weight for name, weight in weights.items()}


def with_head(weights: Weights) -> Weights:
    return weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}


SAME: dict[str, Callable[[Weights], Weights]] = {
    "module": prefixed("module."),
    "peft": prefixed("base_model.model."),
    "twice": prefixed("model."),
    "without_prefix": lambda weights: {name.removeprefix("model."): weight for name, weight in weights.items()},
    "head_stored_as_well": with_head,
    "head_alone": lambda weights: {
        name.replace("model.embed_tokens", "lm_head"): weight for name, weight in weights.items()
    },
    "rotary_tables": lambda weights: weights | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)},
}


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
def test_other_names_of_the_same_weights_give_the_same_base(
    change: Callable[[Weights], Weights], tied: Path, tmp_path: Path
) -> None:
    convert(changed(tied, tmp_path / "hf", change), tmp_path / "base.nemo")
    found, wanted = stored_weights(tmp_path / "base.nemo"), stored_weights(tied.parent / "base.nemo")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def without(name: str) -> Callable[[Weights], Weights]:
    return lambda weights: {key: weight for key, weight in weights.items() if key != name}


def holding(number: float) -> Callable[[Weights], Weights]:
    def change(weights: Weights) -> Weights:
        weights["model.layers.1.mlp.up_proj.weight"][2, 3] = number
        return weights

    return change


WRONG: dict[str, tuple[Callable[[Weights], Weights], dict[str, Any], list[str]]] = {
    "absent": (
        without("model.layers.1.mlp.up_proj.weight"),
        {},
        ["1 of 21 weights", "model.layers.1.mlp.up_proj.weight"],
    ),
    "superfluous": (
        lambda weights: weights | {"model.layers.0.self_attn.q_norm.weight": torch.ones(16)},
        {},
        ["1 tensors have no place", "q_norm.weight"],
    ),
    "many": (
        lambda weights: {"model.embed_tokens.weight": weights["model.embed_tokens.weight"]},
        {},
        ["19 of 21 weights", "and 9 more (19 in all)"],
    ),
    "other_shape": (
        lambda weights: weights | {"model.norm.weight": torch.ones(15)},
        {},
        ["1 weights are of other shapes", "(15,)", "(16,)"],
    ),
    "no_head": (lambda weights: weights, {"tie_word_embeddings": False}, ["absent", "lm_head.weight"]),
    "head_of_its_own": (
        lambda weights: weights | {"lm_head.weight": torch.ones_like(weights["model.embed_tokens.weight"])},
        {},
        ["lm_head.weight", "differs", "tie_word_embeddings"],
    ),
    "nan": (holding(float("nan")), {}, ["up_proj.weight", "1 of 256 numbers are not finite"]),
    "infinity": (holding(float("inf")), {}, ["up_proj.weight", "not finite"]),
}


@pytest.mark.parametrize(("change", "config", "words"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_named(
    change: Callable[[Weights], Weights], config: dict[str, Any], words: list[str], tied: Path, tmp_path: Path
) -> None:
    folder = changed(tied, tmp_path / "hf", change, **config)
    with pytest.raises(UserError) as error:
        convert(folder, tmp_path / "base.nemo")
    assert all(word in str(error.value) for word in words)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_numbers_beyond_the_stored_type_are_refused(tied: Path, tmp_path: Path) -> None:
    folder = changed(tied, tmp_path / "hf", holding(1e6))
    with pytest.raises(UserError, match=r"model.precision: .*linear_fc1.weight holds numbers beyond torch.float16"):
        convert(folder, tmp_path / "base.nemo", 16)


def test_pytorch_model_bin_is_read_without_running_it(tied: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tied, tmp_path / "hf")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    convert(folder, tmp_path / "base.nemo")
    found, wanted = stored_weights(tmp_path / "base.nemo"), stored_weights(tied.parent / "base.nemo")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_code_in_pytorch_model_bin_is_refused(tied: Path, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return open, (str(tmp_path / "executed"), "w")

    folder = shutil.copytree(tied, tmp_path / "hf")
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": torch.ones(2), "x": Payload()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model.bin"):
        convert(folder, tmp_path / "base.nemo")
    assert not (tmp_path / "executed").exists()


def test_fp8_in_blocks_gives_transformers_numbers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2, "head_dim": 64}
    folder = save_llama(tmp_path / "hf", num_key_value_heads=2, num_hidden_layers=1, **sizes)
    stored: Weights = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        stored[name] = weight.bfloat16()
        if "proj" in name:
            blocks = weight.reshape(weight.size(0) // 128, 128, -1, 128)
            scales = blocks.abs().amax((1, 3)) / 448
            stored[name] = (blocks / scales[:, None, :, None]).reshape(weight.shape).to(torch.float8_e4m3fn)
            stored[f"{name}_scale_inv"] = scales
    save_file(stored, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text()) | {"dtype": "bfloat16"}
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (folder / "config.json").write_text(json.dumps(config))
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", trust_remote_code=False).state_dict()
    ours = open_source(folder).tensors
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert convert(folder, tmp_path / "base.nemo")


# --- what was written is compared ---------------------------------------------------------------------------------


def swapped_gates(weights: Any, config: Any) -> Weights:
    result = hf_llama.convert_weights(weights, config)
    name = "decoder.layers.1.mlp.linear_fc1.weight"
    return result | {name: result[name].roll(result[name].size(0) // 2, 0)}


def other_settings(**changes: Any) -> Callable[[Any, Any], dict[str, Any]]:
    return lambda config, weights: hf_llama.nemo_config(config, weights) | changes


@pytest.mark.parametrize(
    ("name", "replacement", "words"),
    [
        ("convert_weights", swapped_gates, "layer 2 of 2 differs from the source"),
        ("nemo_config", other_settings(rotary_base=5000.0), "layer 1 of 2 differs from the source"),
        ("nemo_config", other_settings(seq_len_interpolation_factor=2.0), "layer 1 of 2 differs from the source"),
        ("nemo_config", other_settings(layernorm_epsilon=1e-2), "layer 1 of 2 differs from the source"),
        ("nemo_config", other_settings(activation="fast-geglu"), "layer 1 of 2 differs from the source"),
    ],
)
def test_a_base_that_computes_something_else_gets_no_name(
    name: str, replacement: Any, words: str, tied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = type("Family", (), {key: staticmethod(value) for key, value in vars(hf_llama).items() if callable(value)})
    family.TARGET = hf_llama.TARGET  # type: ignore[attr-defined]
    setattr(family, name, staticmethod(replacement))
    monkeypatch.setitem(conversion.FAMILIES, "llama", family)
    with pytest.raises(UserError, match=words):
        convert(tied, tmp_path / "base.nemo")
    assert not list(tmp_path.iterdir())


def test_what_was_compared_is_recorded(tied: Path) -> None:
    stamp = read_config(tied.parent / "base.nemo")["converted_from"]
    assert stamp["verified"] == conversion.VERIFIED
    assert stamp["converter"] == conversion.VERSION


def test_a_base_of_an_older_converter_is_made_anew(tied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "VERSION", conversion.VERSION - 1)
    assert convert(tied, tmp_path / "base.nemo")
    assert not convert(tied, tmp_path / "base.nemo")
    monkeypatch.undo()
    assert convert(tied, tmp_path / "base.nemo")


# --- tokenizers ---------------------------------------------------------------------------------------------------


def test_ids_are_those_of_tokenizer_json_whatever_class_is_named(tied: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    folder = shutil.copytree(tied, tmp_path / "hf")
    content = json.loads((folder / "tokenizer.json").read_text())
    pattern = {"Regex": r"\p{N}{1,3}(?=(\p{N}{3})*(?!\p{N}))|\s|\P{N}"}
    splits = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [splits, content["pre_tokenizer"]]}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"tokenizer_class": "GPT2Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    convert(folder, tmp_path / "base.nemo")
    tokenizer = load_base(tmp_path / "base.nemo").tokenizer
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "near the river near the river 2023"
    assert tokenizer.text_to_ids(text) == own.encode(text, add_special_tokens=False).ids
    assert len(tokenizer.text_to_ids(text)) == len(text)  # GPT2Tokenizer would split as GPT-2 does
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 0)


@pytest.mark.parametrize("added", [False, True])
def test_sentencepiece_keeps_its_mark_before_the_text(added: bool, tied: Path, tmp_path: Path) -> None:
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["Anna lives near the river.", "Where does Boris live? 2023"] * 20),
        model_writer=model,
        vocab_size=310,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    folder = shutil.copytree(tied, tmp_path / "hf", ignore=shutil.ignore_patterns("tokenizer*"))
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    own = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    if added:
        (folder / "added_tokens.json").write_text(json.dumps({"[PAD]": own.vocab_size()}))
        names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "[PAD]"}
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", **names}))
    convert(folder, tmp_path / "base.nemo")
    tokenizer = load_base(tmp_path / "base.nemo").tokenizer
    for text in ("near the river", " near  the\n\triver 2023", "ż北😀"):
        assert tokenizer.text_to_ids(text) == own.encode(text)
    assert tokenizer.ids_to_text(tokenizer.text_to_ids("near the river")) == "near the river"
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    assert tokenizer.pad_id == (own.vocab_size() if added else None)


def test_tokens_added_behind_the_embedding_get_the_mean_row(
    tied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = load_file(tied / "model.safetensors")["model.embed_tokens.weight"].size(0)
    folder = shutil.copytree(tied, tmp_path / "hf")
    content = json.loads((folder / "tokenizer.json").read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    for number in range(len(content["model"]["vocab"]), rows + 1):
        content["added_tokens"].append({"id": number, "content": f"<x{number}>", "special": True, **flags})
    (folder / "tokenizer.json").write_text(json.dumps(content))
    convert(folder, tmp_path / "base.nemo")
    assert "1 rows are added to the embedding" in capsys.readouterr().out
    base = load_base(tmp_path / "base.nemo")
    assert (base.tokenizer.vocab_size, base.shape.vocab_size) == (rows + 1, rows + 1)
    embedding = base.model.embedding.word_embeddings.weight
    torch.testing.assert_close(embedding[-1], embedding[:-1].mean(0))


def test_a_tokenizer_of_another_model_is_refused(tied: Path, tmp_path: Path) -> None:
    folder = changed(
        tied,
        tmp_path / "hf",
        lambda weights: weights | {"model.embed_tokens.weight": weights["model.embed_tokens.weight"][:300].clone()},
        vocab_size=300,
    )
    with pytest.raises(UserError, match=r"the embedding 300 rows\n.*belongs to another model"):
        convert(folder, tmp_path / "base.nemo")


def test_code_of_a_folder_is_neither_run_nor_asked_for(
    tied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked a question"))
    code = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    folder = changed(tied, tmp_path / "hf", lambda weights: weights, auto_map=code)
    (folder / "own.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["own.Tokenizer", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    convert(folder, tmp_path / "base.nemo")
    assert "auto_map is ignored" in capsys.readouterr().out
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "OwnTokenizer"}))
    with pytest.raises(UserError, match="OwnTokenizer"):
        convert(folder, tmp_path / "other.nemo")
    assert not (tmp_path / "executed").exists()


TOKENIZERS: dict[str, tuple[Any, str]] = {
    "id_beyond_bounds": (
        lambda content: content["model"]["vocab"].update(x=10**9),
        "1000000000 is not the id of a token",
    ),
    "id_of_text": (lambda content: content["model"]["vocab"].update(x="1"), "is not the id of a token"),
    "no_mapping": (lambda content: [content], "is a list, not a tokenizer"),
    "merge_without_tokens": (lambda content: content["model"]["merges"].append(["qqq", "zzz"]), "cannot be read"),
    "prefix_longer_than_tokens": (
        lambda content: content["model"].update(continuing_subword_prefix="#" * 10),
        "cannot be read",  # the library panics
    ),
}


@pytest.mark.parametrize(("change", "words"), TOKENIZERS.values(), ids=TOKENIZERS)
def test_a_damaged_tokenizer_is_told_in_one_line(
    change: Any, words: str, tied: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(tied, tmp_path / "hf")
    content = json.loads((folder / "tokenizer.json").read_text())
    result = change(content)
    (folder / "tokenizer.json").write_text(json.dumps(result if isinstance(result, list) else content))
    with pytest.raises(UserError, match=words):
        convert(folder, tmp_path / "base.nemo")
    assert "panicked" not in capfd.readouterr().err


# --- where it is written ------------------------------------------------------------------------------------------


def test_what_is_not_ours_is_not_replaced(tied: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter.nemo"
    write_archive(adapter, {"language_model_path": "base.nemo"}, {})
    (tmp_path / "text.nemo").write_text("somebody's")
    (tmp_path / "folder.nemo").mkdir()
    shutil.copy(tied.parent / "base.nemo", tmp_path / "other_source.nemo")
    other = shutil.copytree(tied, tmp_path / "another")
    targets = {
        "adapter.nemo": "was not made by a conversion",
        "text.nemo": "was not made by a conversion",
        "folder.nemo": "is a folder",
        "other_source.nemo": "was made from another model, hf",
        "another/base.nemo": "lies in the folder",
        "another": "is the model that is to be converted",
    }
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for name, words in targets.items():
        with pytest.raises(UserError, match=words) as error:
            convert(other, tmp_path / name)
        assert "model.nemo_path" in str(error.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_folder_of_the_same_name_elsewhere_is_another_source(tied: Path, tmp_path: Path) -> None:
    base = tmp_path / "base.nemo"
    convert(save_llama(tmp_path / "a/hf"), base)
    before = base.read_bytes()
    with pytest.raises(UserError, match=r"was made from another model, .*/a/hf: it is not replaced"):
        convert(save_llama(tmp_path / "b/hf", seed=1), base)
    assert base.read_bytes() == before
    (tmp_path / "a").rename(tmp_path / "moved")
    assert not convert(tmp_path / "moved/hf", base)


@pytest.mark.parametrize("size", [3000, 40000, -12000])
def test_a_base_of_ours_that_is_cut_short_is_made_again(size: int, tied: Path, tmp_path: Path) -> None:
    whole = (tied.parent / "base.nemo").read_bytes()
    target = tmp_path / "base.nemo"
    target.write_bytes(whole[:size])
    assert convert(tied, target)
    assert target.read_bytes() == whole


def test_room_is_looked_for_before_anything_is_written(
    tied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 1000))
    with pytest.raises(UserError, match=r"model.nemo_path: the conversion needs .* MiB free"):
        convert(tied, tmp_path / "results/base.nemo")
    assert not list(tmp_path.iterdir())


# --- cases that went wrong before ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("hf_missing_weights", ["1 of 21 weights", "absent: model.layers.1.mlp.up_proj.weight"]),
        ("hf_unexpected_weights", ["2 tensors have no place", "q_norm.weight", "q_proj.bias"]),
    ],
)
def test_cases_that_are_refused(case: str, words: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        convert(shared_path(f"cases/{case}"), tmp_path / "base.nemo")
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("case", ["pad_token_added", "tokenizer_pretok"])
def test_cases_that_are_converted(case: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    source = shared_path(f"cases/{case}")
    convert(source, tmp_path / "base.nemo")
    tokenizer = load_base(tmp_path / "base.nemo").tokenizer
    own = Tokenizer.from_file(str(source / "tokenizer.json"))
    for text in ("In 2023 and 12345", "[PAD]", "héé 北京\n\t 😀"):
        assert tokenizer.text_to_ids(text) == own.encode(text, add_special_tokens=False).ids
