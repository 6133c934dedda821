# SPDX-License-Identifier: Apache-2.0
"""Prompts as NeMo makes them: token ids and loss masks of its own code, and where the default differs."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest

from nemo_launcher.data.templates import TaskTemplate
from tests.data.prompting import samples_of, write_rows
from tests.shared import shared_path

pytestmark = pytest.mark.unit


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


def test_nemo_compat_gives_the_token_ids_and_loss_masks_of_nemo(tmp_path: Path) -> None:
    oracle = _oracle()
    tokenizer = SentencePieceTokenizer(shared_path("oracle/base_gpt.nemo"), oracle["gpt_special"])
    cases = [case for case in oracle["cases"] if case["arch"] == "gpt"]
    assert len(cases) == 11
    for case in cases:
        path = write_rows(tmp_path, case["rows"])
        template = _toy_template(case["template"])
        samples = samples_of(
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
        path, template, options = write_rows(tmp_path, case["rows"]), _toy_template(case["template"]), case["kwargs"]
        samples = samples_of([path], template, tokenizer=tokenizer, max_dropped_share=1.0, **options)
        in_full = samples_of([path], template, tokenizer=tokenizer, **{**options, "max_seq_length": 1000})
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
    path = write_rows(tmp_path, oracle["cases"][0]["rows"])
    for prompt in (TOY_PROMPT, TOY_PROMPT.replace(" {answer}", "{answer}"), TOY_PROMPT.replace(" {a", "\n{a")):
        for sample in samples_of([path], _toy_template({"t": prompt}), tokenizer=tokenizer, add_eos=False):
            assert tokenizer.ids_to_text(sample.input_ids[sample.answer_start :]) == sample.record["answer"]
