# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import random
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from nemo_launcher.data.prompts import encode_files
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.data.tokenizers import Tokenizer
from nemo_launcher.errors import UserError
from nemo_launcher.families.gpt.prompts import GPTPromptEncoder, GPTSample
from tests.shared import shared_path

pytestmark = pytest.mark.unit


def encode_prompt(
    record: dict[str, Any],
    template: TaskTemplate,
    tokenizer: Tokenizer,
    *,
    add_bos: bool,
    add_eos: bool,
    max_seq_length: int,
    for_train: bool,
    nemo_compat: bool,
) -> GPTSample | None:
    """Return the sample of one record, or None if it is too long and cannot be cut."""
    encoder = GPTPromptEncoder(
        tokenizer=tokenizer,
        add_bos=add_bos,
        add_eos=add_eos,
        max_seq_length=max_seq_length,
        for_train=for_train,
        nemo_compat=nemo_compat,
    )
    sample = encoder.encode(record, template)
    return sample if len(sample.input_ids) <= max_seq_length else None


def load_samples(
    paths: Sequence[str | Path],
    templates: Sequence[TaskTemplate],
    tokenizer: Tokenizer,
    *,
    add_bos: bool,
    add_eos: bool,
    max_seq_length: int,
    for_train: bool,
    nemo_compat: bool = False,
    max_dropped_share: float = 0.0,
    tokens_to_generate: int = 0,
    report: Callable[[str], None] = print,
) -> list[GPTSample]:
    """Return the samples of JSON Lines files, in order.

    max_seq_length: the model's limit in tokens, of which tokens_to_generate are reserved; max_dropped_share: the
    fraction of records, 0 to 1, that may be dropped as too long. Raises UserError for records that do not fit the
    templates, for records without a token to train on, and if too many are dropped.
    """
    encoder = GPTPromptEncoder(
        tokenizer=tokenizer,
        add_bos=add_bos,
        add_eos=add_eos,
        max_seq_length=max_seq_length - tokens_to_generate,
        for_train=for_train,
        nemo_compat=nemo_compat,
    )
    return encode_files(paths, templates, encoder, max_dropped_share=max_dropped_share, report=report)


class WordTokenizer:
    """Each word is a token, together with the space before it; the vocabulary grows with new words."""

    bos_id, eos_id, pad_id, unk_id = 0, 1, 2, 3

    def __init__(self) -> None:
        self._words = ["<s>", "</s>", "<pad>", "<unk>"]

    def text_to_ids(self, text: str) -> list[int]:
        words = [word if index == 0 else f" {word}" for index, word in enumerate(text.split(" "))]
        return [self._id(word) for word in words if word]

    def ids_to_text(self, ids: list[int]) -> str:
        return "".join(self._words[index] for index in ids)

    def _id(self, word: str) -> int:
        if word not in self._words:
            self._words.append(word)
        return self._words.index(word)


class CharTokenizer(WordTokenizer):
    """Each character is a token, except that "ab" is one: the answer's start may merge with the prompt's end."""

    def text_to_ids(self, text: str) -> list[int]:
        return [self._id(piece.replace("\0", "ab")) for piece in text.replace("ab", "\0")]


class ByteTokenizer(WordTokenizer):
    """Each UTF-8 byte is a token, after the special tokens."""

    def text_to_ids(self, text: str) -> list[int]:
        return [byte + 4 for byte in text.encode()]

    def ids_to_text(self, ids: list[int]) -> str:
        return bytes(index - 4 for index in ids if index >= 4).decode(errors="replace")


class SentencePieceTokenizer:
    """The tokenizer in an oracle archive, with the special tokens that NeMo adds."""

    def __init__(self, archive: Path, special: dict[str, int]) -> None:
        import sentencepiece

        with tarfile.open(archive) as tar:
            name = next(name for name in tar.getnames() if name.endswith("_tok_gpt.model"))
            file = tar.extractfile(name)
            assert file is not None
            self._model = sentencepiece.SentencePieceProcessor(model_proto=file.read())
        self.bos_id, self.eos_id, self.pad_id = special["bos"], special["eos"], special["pad"]
        self.unk_id = int(self._model.unk_id())

    def text_to_ids(self, text: str) -> list[int]:
        return list(self._model.encode(text))

    def ids_to_text(self, ids: list[int]) -> str:
        return str(self._model.decode(ids))


TOY_PROMPT = "sentence : {premise} sentence : {hypothesis} answer : {answer}"


def _oracle() -> dict[str, Any]:
    import torch

    content: dict[str, Any] = torch.load(shared_path("oracle/dataset.pt"), weights_only=True)
    return content


def _toy_template(changes: dict[str, Any]) -> TaskTemplate:
    return TaskTemplate(
        taskname="toy",
        prompt_template=changes.get("t", TOY_PROMPT),
        truncate_field=changes.get("trunc", "premise"),
        answer_only_loss=changes.get("answer_only", True),
        answer_field="answer",
    )


def _template(prompt: str = "c: {context} a: {answer}", **changes: Any) -> TaskTemplate:
    values = {"answer_only_loss": True, "answer_field": "answer", **changes}
    return TaskTemplate(taskname="squad", prompt_template=prompt, **values)


def _encode(
    record: dict[str, Any],
    template: TaskTemplate,
    tokenizer: Tokenizer,
    *,
    add_bos: bool = False,
    add_eos: bool = True,
    max_seq_length: int = 100,
    for_train: bool = True,
    nemo_compat: bool = False,
) -> GPTSample:
    sample = encode_prompt(
        record,
        template,
        tokenizer,
        add_bos=add_bos,
        add_eos=add_eos,
        max_seq_length=max_seq_length,
        for_train=for_train,
        nemo_compat=nemo_compat,
    )
    assert sample is not None
    return sample


def _write(folder: Path, rows: list[dict[str, Any]], name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _load(paths: list[Path], *templates: TaskTemplate, **changes: Any) -> list[GPTSample]:
    options: dict[str, Any] = {
        "add_bos": False,
        "add_eos": True,
        "max_seq_length": 100,
        "for_train": True,
        "report": lambda line: None,
        **changes,
    }
    return load_samples(paths, templates or (_template(),), options.pop("tokenizer", WordTokenizer()), **options)


def _load_error(paths: list[Path], *templates: TaskTemplate, **changes: Any) -> str:
    with pytest.raises(UserError) as error:
        _load(paths, *templates, **changes)
    return str(error.value)


def test_nemo_compat_gives_the_token_ids_and_loss_masks_of_nemo(tmp_path: Path) -> None:
    oracle = _oracle()
    tokenizer = SentencePieceTokenizer(shared_path("oracle/base_gpt.nemo"), oracle["gpt_special"])
    cases = [case for case in oracle["cases"] if case["arch"] == "gpt"]
    assert len(cases) == 11
    for case in cases:
        path = _write(tmp_path, case["rows"])
        template = _toy_template(case["template"])
        samples = _load(
            [path], template, tokenizer=tokenizer, nemo_compat=True, max_dropped_share=1.0, **case["kwargs"]
        )
        expected = case["examples"]
        assert [sample.input_ids for sample in samples] == [ids for _, ids, _ in expected], case["name"]
        assert [sample.answer_start for sample in samples] == [start or 0 for *_, start in expected], case["name"]
        if case["kwargs"]["for_train"]:
            for sample, mask in zip(samples, case["batch"][2], strict=True):
                positions = range(1, 1 + mask.numel())
                own = [float(sample.answer_start <= at < len(sample.input_ids)) for at in positions]
                assert own == mask.flatten().tolist(), case["name"]


def test_the_default_differs_from_nemo_in_the_cut_prompts_alone(tmp_path: Path) -> None:
    oracle = _oracle()
    tokenizer = SentencePieceTokenizer(shared_path("oracle/base_gpt.nemo"), oracle["gpt_special"])
    for case in (case for case in oracle["cases"] if case["arch"] == "gpt"):
        path, template, options = _write(tmp_path, case["rows"]), _toy_template(case["template"]), case["kwargs"]
        samples = _load([path], template, tokenizer=tokenizer, max_dropped_share=1.0, **options)
        in_full = _load([path], template, tokenizer=tokenizer, **{**options, "max_seq_length": 1000})
        whole = {sample.source: sample for sample in in_full}
        assert len(samples) == len(case["examples"])
        for sample, (_, ids, start) in zip(samples, case["examples"], strict=True):
            length = len(whole[sample.source].input_ids)
            if length <= options["max_seq_length"]:
                # Except for "answer:{answer}", where NeMo counts the answer's tokens separately.
                expected = whole[sample.source].answer_start if case["name"] == "nl" else start or 0
                assert (sample.input_ids, sample.answer_start) == (ids, expected), case["name"]
                continue
            answer_length = length - whole[sample.source].answer_start
            assert len(sample.input_ids) <= options["max_seq_length"]
            if options["for_train"]:
                assert sample.input_ids[sample.answer_start :] == whole[sample.source].input_ids[-answer_length:]
                assert sample.input_ids[-1] == tokenizer.eos_id
                assert (sample.input_ids[0] == tokenizer.bos_id) == options["add_bos"]


def test_sentencepiece_trains_exactly_the_answer_with_and_without_a_space_before_it(tmp_path: Path) -> None:
    oracle = _oracle()
    tokenizer = SentencePieceTokenizer(shared_path("oracle/base_gpt.nemo"), oracle["gpt_special"])
    path = _write(tmp_path, oracle["cases"][0]["rows"])
    for prompt in (TOY_PROMPT, TOY_PROMPT.replace(" {answer}", "{answer}"), TOY_PROMPT.replace(" {a", "\n{a")):
        for sample in _load([path], _toy_template({"t": prompt}), tokenizer=tokenizer, add_eos=False):
            assert tokenizer.ids_to_text(sample.input_ids[sample.answer_start :]) == sample.record["answer"]


def test_the_answer_and_the_end_are_in_the_loss() -> None:
    tokenizer = WordTokenizer()
    record = {"context": "the old town", "answer": "of Warsaw"}
    sample = _encode(record, _template(), tokenizer, add_bos=True)
    assert tokenizer.ids_to_text(sample.input_ids) == "<s>c: the old town a: of Warsaw</s>"
    assert tokenizer.ids_to_text(sample.input_ids[sample.answer_start :]) == " of Warsaw</s>"
    assert sample.num_trained_tokens == 3
    assert sample.record is record
    everything = _encode(record, _template(answer_only_loss=False), tokenizer)
    assert everything.answer_start == 0
    assert everything.num_trained_tokens == len(everything.input_ids) - 1


def test_the_loss_begins_where_the_prompt_of_inference_ends() -> None:
    """The answer's tokens are not a suffix of the whole, because trailing spaces are removed."""
    tokenizer = WordTokenizer()
    record = {"context": "x", "answer": "yes  "}
    sample = _encode(record, _template(), tokenizer, add_bos=True)
    prompt = _encode(record, _template(), tokenizer, add_bos=True, add_eos=False, for_train=False)
    assert sample.input_ids[: sample.answer_start] == prompt.input_ids
    assert tokenizer.ids_to_text(sample.input_ids[sample.answer_start :]) == " yes</s>"


def test_a_token_across_the_boundary_is_in_the_loss() -> None:
    tokenizer = CharTokenizer()
    sample = _encode({"context": "x", "answer": "bc"}, _template("{context}a{answer}"), tokenizer, add_eos=False)
    assert tokenizer.ids_to_text(sample.input_ids[: sample.answer_start]) == "x"
    assert tokenizer.ids_to_text(sample.input_ids[sample.answer_start :]) == "abc"


def test_a_cut_prompt_keeps_its_special_tokens_and_uses_the_whole_budget() -> None:
    tokenizer = WordTokenizer()
    record = {"context": "one two three four five six", "answer": "of Warsaw"}
    template = _template(truncate_field="context")
    sample = _encode(record, template, tokenizer, add_bos=True, max_seq_length=9)
    assert tokenizer.ids_to_text(sample.input_ids) == "<s>c: one two three a: of Warsaw</s>"
    assert tokenizer.ids_to_text(sample.input_ids[sample.answer_start :]) == " of Warsaw</s>"
    assert record["context"] == "one two three four five six"
    compat = _encode(record, template, tokenizer, add_bos=True, max_seq_length=9, nemo_compat=True)
    assert tokenizer.ids_to_text(compat.input_ids) == "c: one two a: of Warsaw"
    assert tokenizer.ids_to_text(compat.input_ids[compat.answer_start :]) == " a: of Warsaw"


def test_a_cut_leaves_no_half_of_a_character() -> None:
    tokenizer = ByteTokenizer()
    record = {"context": "żółw żółw", "answer": "ż"}
    template = _template("{context} {answer}", truncate_field="context")
    for max_seq_length in range(6, 20):
        sample = _encode(record, template, tokenizer, max_seq_length=max_seq_length)
        text = tokenizer.ids_to_text(sample.input_ids)
        assert "\ufffd" not in text
        assert text.endswith(" ż")


@pytest.mark.parametrize("tokenizer", [WordTokenizer(), CharTokenizer()])
def test_random_prompts_fit_and_train_exactly_the_answer(tokenizer: WordTokenizer) -> None:
    draw = random.Random(0)
    for _ in range(300):
        context = " ".join(draw.choices(["a", "ab", "b", "abba", "x"], k=draw.randint(0, 30)))
        answer = " ".join(draw.choices(["a", "ab", "b"], k=draw.randint(1, 3)))
        options: dict[str, Any] = {"add_bos": draw.random() < 0.5, "add_eos": draw.random() < 0.5}
        sample = encode_prompt(
            {"context": context, "answer": answer},
            _template(truncate_field="context"),
            tokenizer,
            max_seq_length=draw.randint(20, 60),
            for_train=True,
            nemo_compat=False,
            **options,
        )
        assert sample is not None
        text = tokenizer.ids_to_text(sample.input_ids)
        assert text.startswith("<s>c:" if options["add_bos"] else "c:")
        trained = tokenizer.ids_to_text(sample.input_ids[sample.answer_start :])
        assert trained == f" {answer}{'</s>' if options['add_eos'] else ''}"


def test_what_cannot_be_cut_to_fit_is_no_sample() -> None:
    record = {"context": "one two", "answer": "a b c d e f"}
    options: dict[str, Any] = {"add_bos": False, "add_eos": True, "max_seq_length": 6, "for_train": True}
    for template in (_template(), _template(truncate_field="context")):
        for nemo_compat in (False, True):
            sample = encode_prompt(record, template, WordTokenizer(), nemo_compat=nemo_compat, **options)
            assert sample is None


def test_inference_never_sees_the_answer() -> None:
    tokenizer = WordTokenizer()
    options: dict[str, Any] = {"for_train": False, "add_eos": False}
    record = {"context": "x", "answer": "secret"}
    sample = _encode(record, _template(), tokenizer, **options)
    assert tokenizer.ids_to_text(sample.input_ids) == "c: x a:"
    assert sample.answer_start == 0
    compat = _encode(record, _template(), tokenizer, nemo_compat=True, **options)
    assert "secret" in tokenizer.ids_to_text(compat.input_ids)


def test_spaces_at_the_ends_of_a_prompt_go_and_line_breaks_stay() -> None:
    tokenizer = CharTokenizer()
    options: dict[str, Any] = {"for_train": False, "add_eos": False}
    for prompt, text in ((" {context}  {answer}", "x"), ("\n{context}\n{answer}", "\nx\n")):
        sample = _encode({"context": "x"}, _template(prompt), tokenizer, **options)
        assert tokenizer.ids_to_text(sample.input_ids) == text


def test_braces_inside_a_value_are_text() -> None:
    tokenizer = WordTokenizer()
    sample = _encode({"context": "{answer}", "answer": "yes"}, _template(), tokenizer)
    assert tokenizer.ids_to_text(sample.input_ids) == "c: {answer} a: yes</s>"


def test_samples_come_in_order_with_their_sources(tmp_path: Path) -> None:
    rows = [{"taskname": "squad", "context": text, "answer": "x", "id": 7} for text in ("p", "q", "r")]
    first, second = _write(tmp_path, rows[:2]), _write(tmp_path, rows[2:], "more.jsonl")
    samples = _load([first, second])
    assert [sample.source for sample in samples] == [f"{first}:1", f"{first}:2", f"{second}:1"]
    assert [sample.record for sample in samples] == rows


def test_each_taskname_has_its_own_template(tmp_path: Path) -> None:
    tokenizer = WordTokenizer()
    rows = [{"taskname": name, "context": "x", "answer": "y"} for name in ("squad", "other")]
    other = TaskTemplate(taskname="other", prompt_template="{context} = {answer}")
    samples = _load([_write(tmp_path, rows)], _template(), other, tokenizer=tokenizer)
    assert [tokenizer.ids_to_text(sample.input_ids) for sample in samples] == ["c: x a: y</s>", "x = y</s>"]


def test_the_mistakes_of_all_files_come_at_once(tmp_path: Path) -> None:
    good = {"taskname": "squad", "context": "x", "answer": "y"}
    rows = [good, {**good, "taskname": "sqad"}, {**good, "answer": ""}, {"taskname": "squad", "contxt": "x"}]
    first, second = _write(tmp_path, rows), _write(tmp_path, [{"context": "x"}], "more.jsonl")
    message = _load_error([first, tmp_path / "absent.jsonl", second])
    assert f"{first}:2: no task template for taskname 'sqad'\n    -> did you mean 'squad'?" in message
    assert f"{first}:3: field 'answer' is empty" in message
    assert f"{first}:4: no field 'context', which the prompt template reads\n    -> did you mean 'contxt'?" in message
    assert "absent.jsonl: no such file" in message
    assert f"{second}:1: no 'taskname'" in message


def test_inference_needs_no_answer(tmp_path: Path) -> None:
    path = _write(tmp_path, [{"taskname": "squad", "context": "x"}])
    assert len(_load([path], for_train=False)) == 1


def test_a_sample_without_a_token_to_train_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path, [{"taskname": "squad", "context": "x", "answer": "y"}])
    only_one_token = TaskTemplate(taskname="squad", prompt_template="{context}")
    assert "no token is left to train on" in _load_error([path], only_one_token, add_eos=False)


def test_too_long_prompts_are_an_error_unless_some_may_be_dropped(tmp_path: Path) -> None:
    rows = [{"taskname": "squad", "context": "w " * length, "answer": "y"} for length in (1, 2, 30, 20)]
    path = _write(tmp_path, rows)
    message = _load_error([path], max_seq_length=16, max_dropped_share=0.49)
    assert f"2 of 4 prompts are longer than 16 tokens; the longest, {path}:3, has 3" in message
    for key in ("encoder_seq_length", "truncate_field", "max_dropped_share=0.5"):
        assert key in message
    lines: list[str] = []
    assert len(_load([path], max_seq_length=16, max_dropped_share=0.5, report=lines.append)) == 2
    assert len(lines) == 1
    assert "2 of 4 prompts" in lines[0]


def test_cut_prompts_are_counted_but_not_those_that_are_dropped(tmp_path: Path) -> None:
    rows = [{"taskname": "squad", "context": "w " * length, "answer": "y"} for length in (1, 20, 30)]
    rows.append({"taskname": "squad", "context": "w " * 20, "answer": "y " * 40})
    path, lines = _write(tmp_path, rows), list[str]()
    template = _template(truncate_field="context", answer_field="answer")
    options = {"max_seq_length": 16, "max_dropped_share": 0.25, "report": lines.append}
    assert len(_load([path], template, **options)) == 3
    assert lines[0] == "2 of 4 prompts were cut to 16 tokens, at the end of their truncate_field"
    assert "1 of 4 prompts are longer" in lines[1]


def test_an_empty_data_set_is_refused_however_many_may_be_dropped(tmp_path: Path) -> None:
    path = _write(tmp_path, [{"taskname": "squad", "context": "w " * 20, "answer": "y"}])
    assert "1 of 1 prompts" in _load_error([path], max_seq_length=8, max_dropped_share=1.0)


def test_tokens_to_generate_are_kept_free(tmp_path: Path) -> None:
    path = _write(tmp_path, [{"taskname": "squad", "context": "one two three"}])
    options: dict[str, Any] = {"for_train": False, "add_eos": False, "max_seq_length": 10}
    assert len(_load([path], tokens_to_generate=5, **options)) == 1
    assert "longer than 4 tokens" in _load_error([path], tokens_to_generate=6, **options)
    assert "0 tokens are left" in _load_error([path], tokens_to_generate=10, **options)


def test_a_special_token_that_the_tokenizer_lacks_is_named(tmp_path: Path) -> None:
    tokenizer = WordTokenizer()
    tokenizer.bos_id = None  # type: ignore[assignment]
    path = _write(tmp_path, [{"taskname": "squad", "context": "x", "answer": "y"}])
    assert "model.data.add_bos: the tokenizer has no such token" in _load_error(
        [path], tokenizer=tokenizer, add_bos=True
    )


def test_two_templates_of_one_taskname_are_refused(tmp_path: Path) -> None:
    path = _write(tmp_path, [{"taskname": "squad", "context": "x", "answer": "y"}])
    assert "two templates for 'squad'" in _load_error([path], _template(), _template())
