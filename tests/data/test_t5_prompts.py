# SPDX-License-Identifier: Apache-2.0
"""T5 prompts: NeMo's token ids, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_launcher.checkpoint.archive import Archive
from nemo_launcher.data.prompts import encode_files
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.data.tokenizers import T5SentencePieceTokenizer, load_tokenizer
from nemo_launcher.errors import UserError
from nemo_launcher.families.t5.packing import pack
from nemo_launcher.families.t5.prompts import T5PromptEncoder, plain_text
from nemo_launcher.families.t5.samples import T5Sample
from tests import t5
from tests.shared import shared_path

pytestmark = pytest.mark.unit

TOY_PROMPT = "sentence : {premise} sentence : {hypothesis} answer : {answer}"


class WordTokenizer:
    """Each word is a token, regardless of what precedes it; the vocabulary grows with new words."""

    bos_id: int | None = 0
    eos_id, pad_id, unk_id, vocab_size = 1, 2, 3, 1000
    special_ids = frozenset({0, 1, 2, 4, 5})

    def __init__(self) -> None:
        self.words = ["<s>", "</s>", "<pad>", "<unk>", "<extra_id_0>", "<extra_id_1>"]

    def text_to_ids(self, text: str) -> list[int]:
        for word in text.split():
            if word not in self.words:
                self.words.append(word)
        return [self.words.index(word) for word in text.split()]

    def ids_to_text(self, ids: Any) -> str:
        return " ".join(self.words[index] for index in ids)

    def token_to_id(self, token: str) -> int | None:
        return self.words.index(token) if token in self.words else None


def _template(changes: dict[str, Any] | None = None) -> TaskTemplate:
    changes = changes or {}
    return TaskTemplate(
        taskname="toy",
        prompt_template=changes.get("t", TOY_PROMPT),
        truncate_field=changes.get("trunc", "premise"),
        answer_only_loss=True,
        answer_field="answer",
    )


def _encoder(tokenizer: Any, **changes: Any) -> T5PromptEncoder:
    options: dict[str, Any] = {"add_bos": False, "add_eos": True, "max_seq_length": 64, "for_train": True}
    return T5PromptEncoder(tokenizer=tokenizer, **(options | changes))


def _write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _words(sample: T5Sample, tokenizer: WordTokenizer) -> tuple[str, str]:
    return tokenizer.ids_to_text(sample.input_ids), tokenizer.ids_to_text(sample.decoder_ids)


def _oracle_tokenizer() -> T5SentencePieceTokenizer:
    with Archive(shared_path("oracle/base_t5.nemo")) as archive:
        tokenizer = load_tokenizer(archive)
    assert isinstance(tokenizer, T5SentencePieceTokenizer)
    return tokenizer


# --- NeMo's ids -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nemo_compat", [True, False])
def test_token_ids_and_labels_are_nemos(nemo_compat: bool, tmp_path: Path) -> None:
    """All cases in both modes, whose results are equal for these cases."""
    tokenizer = _oracle_tokenizer()
    cases = [case for case in t5.load_case("dataset")["cases"] if case["arch"] == "t5"]
    assert len(cases) == 11
    for case in cases:
        encoder = _encoder(tokenizer, nemo_compat=nemo_compat, **case["kwargs"])
        path = _write(tmp_path, case["rows"])
        samples = encode_files([path], [_template(case["template"])], encoder, max_dropped_share=1.0)
        assert [sample.input_ids for sample in samples] == [ids for _, ids, _, _ in case["examples"]], case["name"]
        for sample, (_, _, dec_input, labels) in zip(samples, case["examples"], strict=True):
            wanted = [tokenizer.bos_id] if dec_input is None else [dec_input[0], *labels]
            assert sample.decoder_ids == wanted, case["name"]
            assert sample.decoder_ids[:-1] == (dec_input or []), case["name"]


def test_special_tokens_lie_where_nemo_puts_them() -> None:
    tokenizer, oracle = _oracle_tokenizer(), t5.load_case("dataset")
    wanted = dict(oracle["t5_special"])
    ids = {"pad": tokenizer.pad_id, "bos": tokenizer.bos_id, "eos": tokenizer.eos_id}
    assert ids == {name: wanted.pop(name) for name in ids}
    assert {name: tokenizer.token_to_id(name) for name in wanted} == wanted
    assert tokenizer.vocab_size == oracle["t5_vocab_size"]
    assert tokenizer.text_to_ids("<extra_id_3>") == [wanted["<extra_id_3>"]]
    assert tokenizer.text_to_ids("the dog <extra_id_0>")[-1] == wanted["<extra_id_0>"]
    assert tokenizer.token_to_id("<extra_id_10>") is None


def test_sentinels_may_come_first_and_in_reverse() -> None:
    """In checkpoints converted from Google's, `<pad>`, here in the model, keeps its id."""
    with Archive(shared_path("oracle/base_t5.nemo")) as archive:
        name = archive.config()["tokenizer"]["model"].removeprefix("nemo:")
        model = archive.open(name).read()
    section = {"num_sentinel_tokens": 3, "add_sentinel_tokens_first": True}
    section["add_sentinel_tokens_in_reverse_order"] = True
    tokenizer = T5SentencePieceTokenizer(model, section)
    found = [tokenizer.token_to_id(f"<extra_id_{number}>") for number in range(3)]
    assert found == [96, 95, 94]
    assert [tokenizer.token_to_id(token) for token in ("<cls>", "<sep>", "<mask>")] == [97, 98, 99]
    assert tokenizer.vocab_size == 100


def test_text_ends_at_the_first_end_and_loses_special_tokens() -> None:
    tokenizer = _oracle_tokenizer()
    text = "the quick"
    ids = tokenizer.text_to_ids(text)
    sentinel, end = tokenizer.token_to_id("<extra_id_0>"), tokenizer.token_to_id("<extra_id_1>")
    assert sentinel is not None
    assert end is not None
    assert tokenizer.eos_id is not None
    assert plain_text(tokenizer, [tokenizer.bos_id or 0, sentinel, *ids]) == text
    assert plain_text(tokenizer, [sentinel, *ids, end, *ids]) == text
    assert plain_text(tokenizer, [*ids, tokenizer.eos_id, *ids, end]) == text


# --- options ----------------------------------------------------------------------------------------------------


def test_each_option_adds_its_token() -> None:
    tokenizer = WordTokenizer()
    record, template = {"premise": "a b", "hypothesis": "c", "answer": "yes"}, _template({"t": "{premise} = {answer}"})
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({}, "a b = <extra_id_0> </s>", "<s> <extra_id_0> yes </s>"),
        ({"add_bos": True, "add_eos": False}, "<s> a b = <extra_id_0>", "<s> <extra_id_0> yes </s>"),
        ({"add_sentinel_to_input": False}, "a b = </s>", "<s> yes </s>"),
        ({"decoder_starts_with_pad": True}, "a b = <extra_id_0> </s>", "<pad> <extra_id_0> yes </s>"),
        ({"add_eos_to_decoder_output": False}, "a b = <extra_id_0> </s>", "<s> <extra_id_0> yes <extra_id_1>"),
        ({"ul2_prompt_token": "a", "add_bos": True}, "<s> a a b = <extra_id_0> </s>", "<s> <extra_id_0> yes </s>"),
    ]
    tokenizer.text_to_ids("a")
    for options, prompt, answer in cases:
        encoder = _encoder(tokenizer, **options)
        assert not encoder.problems([template])
        assert _words(encoder.encode(record, template), tokenizer) == (prompt, answer)


def test_generation_starts_with_the_token_of_training_and_never_sees_the_answer() -> None:
    tokenizer, record = WordTokenizer(), {"premise": "a", "hypothesis": "b", "answer": "yes"}
    options: dict[str, Any] = {"for_train": False, "decoder_starts_with_pad": True}
    prompt = "sentence : a sentence : b answer : <extra_id_0> </s>"
    sample = _encoder(tokenizer, **options).encode(record, _template())
    assert _words(sample, tokenizer) == (prompt, "<pad>")
    sample = _encoder(tokenizer, nemo_compat=True, **options).encode(record, _template())
    assert _words(sample, tokenizer) == (prompt, "<s>")
    assert _encoder(tokenizer, **options).encode_text(" a b ", "--prompt 1").input_ids == tokenizer.text_to_ids(
        "a b <extra_id_0> </s>"
    )


def test_braces_inside_a_value_are_text_except_for_nemo() -> None:
    tokenizer, record = WordTokenizer(), {"premise": "{hypothesis}", "hypothesis": "b", "answer": "yes"}
    template = _template({"t": "{premise} {hypothesis} {answer}"})
    assert _words(_encoder(tokenizer).encode(record, template), tokenizer)[0].startswith("{hypothesis} b")
    compat = _encoder(tokenizer, nemo_compat=True).encode(record, template)
    assert _words(compat, tokenizer)[0].startswith("b b")


def test_a_field_is_cut_by_its_last_tokens() -> None:
    tokenizer = WordTokenizer()
    record = {"premise": "one two three four", "hypothesis": "b", "answer": "y"}
    encoder = _encoder(tokenizer, max_seq_length=11)
    prompt, _ = _words(encoder.encode(record, _template()), tokenizer)
    assert prompt == "sentence : one two sentence : b answer : <extra_id_0> </s>"
    assert record["premise"] == "one two three four"


class JoiningTokenizer(WordTokenizer):
    """Joins the first word of a field to the preceding colon, so that the field's own tokens are not in the prompt."""

    def text_to_ids(self, text: str) -> list[int]:
        return super().text_to_ids(text.replace(": one", ":one"))


def test_a_field_that_is_tokenised_differently_in_the_prompt_is_cut_all_the_same() -> None:
    """NeMo raises a ValueError here."""
    tokenizer = JoiningTokenizer()
    record = {"premise": "one two three four", "hypothesis": "b", "answer": "y"}
    sample = _encoder(tokenizer, max_seq_length=10).encode(record, _template())
    assert len(sample.input_ids) <= 10
    assert _words(sample, tokenizer)[0] == "sentence :one two sentence : b answer : <extra_id_0> </s>"


def test_a_prompt_of_inference_without_a_field_to_cut_keeps_its_end_and_says_so(tmp_path: Path) -> None:
    path = _write(tmp_path, [{"taskname": "toy", "premise": "one " * 20, "hypothesis": "b"}])
    encoder, lines = _encoder(WordTokenizer(), max_seq_length=9, for_train=False), list[str]()
    samples = encode_files([path], [_template({"trunc": None})], encoder, report=lines.append)
    assert [len(sample.input_ids) for sample in samples] == [9]
    assert lines == ["1 of 1 prompts were cut to their last 9 tokens"]


def test_prompts_with_a_field_that_was_cut_are_counted(tmp_path: Path) -> None:
    path = _write(
        tmp_path, [{"taskname": "toy", "premise": "one " * n, "hypothesis": "b", "answer": "y"} for n in (1, 20)]
    )
    encoder, lines = _encoder(WordTokenizer(), max_seq_length=12), list[str]()
    assert len(encode_files([path], [_template()], encoder, report=lines.append)) == 2
    assert lines == ["1 of 2 prompts were cut to 12 tokens, at the end of their truncate_field"]


# --- what is refused --------------------------------------------------------------------------------------------


def test_tokens_that_the_tokenizer_lacks_are_named_at_once() -> None:
    tokenizer = WordTokenizer()
    tokenizer.bos_id = None
    tokenizer.words = tokenizer.words[:4]
    encoder = _encoder(tokenizer, add_bos=True, add_eos_to_decoder_output=False, ul2_prompt_token="<s2s>")
    message = str(UserError(encoder.problems()))
    for part in (
        "model.data.add_bos: the tokenizer has no such token",
        "the decoder would start with BOS, but the tokenizer has no such token",
        "set decoder_starts_with_pad: True",
        "the tokenizer has no token <extra_id_0>\n    -> set add_sentinel_to_input: False",
        "the tokenizer has no token <extra_id_1>\n    -> set add_eos_to_decoder_output: True",
        "the tokenizer has no token <s2s>",
    ):
        assert part in message


def test_training_needs_an_answer_field() -> None:
    template = TaskTemplate(taskname="toy", prompt_template="{premise}")
    assert "learns only answers" in str(UserError(_encoder(WordTokenizer()).problems([template])))
    assert not _encoder(WordTokenizer(), for_train=False).problems([template])


def test_an_answer_the_decoder_has_no_room_for_is_named(tmp_path: Path) -> None:
    rows = [{"taskname": "toy", "premise": "a", "hypothesis": "b", "answer": "w " * length} for length in (3, 9)]
    path = _write(tmp_path, rows)
    encoder = _encoder(WordTokenizer(), max_decoder_length=8)
    with pytest.raises(UserError, match=r"data.jsonl:2: the answer has 11 tokens, but the decoder's limit is 8"):
        encode_files([path], [_template()], encoder)
    encoder = _encoder(WordTokenizer(), max_decoder_length=8, for_train=False, tokens_to_generate=9)
    assert "inference.tokens_to_generate: 9 tokens" in str(UserError(encoder.problems()))


# --- batches ----------------------------------------------------------------------------------------------------


def test_a_batch_holds_the_tokens_and_no_padding() -> None:
    samples = [T5Sample([5, 6, 7], [0, 8, 1], {}, ""), T5Sample([9], [0, 4, 4, 1], {}, "")]
    batch = pack(samples).to(torch.device("cpu"))
    assert batch.encoder_row.tokens.tolist() == [[5, 6, 7, 9]]
    assert batch.encoder_row.position_ids().tolist() == [[0, 1, 2, 0]]
    assert batch.decoder_row.tokens.tolist() == [[0, 8, 0, 4, 4]]
    assert batch.labels.tolist() == [8, 1, 4, 4, 1]
    assert batch.label_samples.tolist() == [0, 0, 1, 1, 1]
    assert batch.lengths.tolist() == [5, 4]
    assert batch.num_computed_tokens == 9
