# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nemo_launcher.data.chat import Chat, message_problems
from nemo_launcher.data.duplicates import Contents
from nemo_launcher.data.fast_tokenizers import FastTokenizer, read_plain
from nemo_launcher.data.labels import find_labels
from nemo_launcher.data.prompts import encode_files
from nemo_launcher.data.tasks import Tasks
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.errors import UserError
from nemo_launcher.families.gpt.packing import pack
from nemo_launcher.families.gpt.prompts import GPTPromptEncoder
from tests.caches import gpt_encoder, load, t5_encoder
from tests.versions import as_saved_by_5

pytestmark = pytest.mark.unit

PLAIN = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONVERSATION = [
    {"role": "system", "content": "Answer in French."},
    {"role": "user", "content": "Where is it? 🌉"},
    {"role": "assistant", "content": "À Paris 🗼"},
    {"role": "user", "content": "Since when?"},
    {"role": "assistant", "content": "1889"},
]
CHAT = TaskTemplate(taskname="chat", prompt_template="", template_format="chat", answer_only_loss=True)


def _tokenizer(folder: Path, template: str) -> tuple[FastTokenizer, PreTrainedTokenizerFast]:
    """Return this project's and transformers' tokenizer of a folder with a byte-level model."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<s>", "<|im_start|>", "<|im_end|>"])
    theirs = PreTrainedTokenizerFast(tokenizer_object=library, bos_token="<s>", eos_token="<|im_end|>")
    theirs.chat_template = template
    theirs.save_pretrained(folder)
    ours = read_plain(as_saved_by_5(folder))
    assert ours is not None
    return ours, theirs


def _encoder(folder: Path, template: str, **changes: Any) -> GPTPromptEncoder:
    return gpt_encoder(tokenizer=_tokenizer(folder, template)[0], max_seq_length=1000, **changes)


def _data(folder: Path, *records: dict[str, Any]) -> str:
    path = folder / "chat.jsonl"
    path.write_text("".join(json.dumps({"taskname": "chat"} | record) + "\n" for record in records))
    return str(path)


@pytest.mark.parametrize("template", [MARKED, PLAIN])
def test_token_ids_and_mask_are_those_of_transformers(tmp_path: Path, template: str) -> None:
    encoder = _encoder(tmp_path / "tokenizer", template)
    _, theirs = _tokenizer(tmp_path / "theirs", MARKED)
    wanted = theirs.apply_chat_template(CONVERSATION, return_assistant_tokens_mask=True, return_dict=True)
    (sample,) = encode_files([_data(tmp_path, {"messages": CONVERSATION})], [CHAT], encoder)
    assert sample.input_ids == list(wanted["input_ids"])
    mask = [int(place >= sample.answer_start and place not in sample.skipped) for place in range(len(sample.input_ids))]
    assert mask == list(wanted["assistant_masks"])
    assert sample.num_trained_tokens == sum(mask)


def test_a_prompt_and_its_completion_are_two_turns(tmp_path: Path) -> None:
    encoder = _encoder(tmp_path / "tokenizer", PLAIN)
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    data = _data(
        tmp_path,
        {"messages": turns},
        {"prompt": "hi", "completion": "ho"},
        {"prompt": turns[:1], "completion": turns[1:]},
    )
    first, *others = encode_files([data], [CHAT], encoder)
    assert [sample.input_ids for sample in others] == [first.input_ids] * 2
    assert [sample.answer_start for sample in others] == [first.answer_start] * 2


def test_inference_sees_the_turns_before_the_last_answer(tmp_path: Path) -> None:
    encoder = _encoder(tmp_path / "tokenizer", MARKED, for_train=False)
    _, theirs = _tokenizer(tmp_path / "theirs", MARKED)
    data = _data(tmp_path, {"messages": CONVERSATION}, {"messages": CONVERSATION[:-1]})
    wanted = theirs.apply_chat_template(CONVERSATION[:-1], add_generation_prompt=True, return_dict=True)["input_ids"]
    assert [sample.input_ids for sample in encode_files([data], [CHAT], encoder)] == [list(wanted)] * 2


def test_the_right_answer_of_a_conversation_is_its_last_message(tmp_path: Path) -> None:
    data = _data(tmp_path, {"messages": CONVERSATION}, {"prompt": "hi", "completion": "ho"})
    assert [label.answers for label in find_labels([data], None, [CHAT])] == [["1889"], ["ho"]]


def test_labels_are_the_assistants_tokens_in_every_layout(tmp_path: Path) -> None:
    other = [*CONVERSATION[:4], {"role": "assistant", "content": "la Tour Eiffel"}]
    data = _data(tmp_path, {"messages": CONVERSATION}, {"messages": other})
    encoder = _encoder(tmp_path / "tokenizer", PLAIN)
    samples = encode_files([data], [CHAT], encoder)
    wanted = [
        sample.input_ids[place]
        for sample in samples
        for place in range(sample.answer_start, len(sample.input_ids))
        if place not in sample.skipped
    ]
    for share in (True, False):
        batch = pack(samples, share_prefix=share)
        assert batch.labels.tolist() == wanted
        assert torch.bincount(batch.label_samples).tolist() == [sample.num_trained_tokens for sample in samples]
    stored = load([Path(data)], encoder, tmp_path / "cache", templates=[CHAT])
    assert [sample.skipped for sample in stored] == [sample.skipped for sample in samples]
    assert [sample.num_trained_tokens for sample in stored] == [sample.num_trained_tokens for sample in samples]


# --- mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "what"),
    [
        ({"text": "x"}, "no messages"),
        ({"messages": "hi"}, "'messages' holds text, not a list of messages"),
        ({"messages": [{"role": "user"}]}, "message 1 of 'messages' has no role and content that are text"),
        ({"messages": []}, "has no message to answer"),
        ({"messages": CONVERSATION[:2]}, "has no message of the assistant"),
        ({"messages": CONVERSATION, "prompt": "x"}, "has both 'messages' and 'prompt'"),
        ({"prompt": "hi", "completion": 3}, "'completion' holds a number, not a list of messages"),
    ],
)
def test_what_is_no_conversation_is_named(record: dict[str, Any], what: str) -> None:
    (problem,) = message_problems(record, "a.jsonl:1", for_train=True)
    assert what in problem.what
    assert problem.where == "a.jsonl:1"


def test_a_base_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    data = _data(tmp_path, {"messages": CONVERSATION})
    for encoder in (gpt_encoder(), t5_encoder()):
        if isinstance(encoder, GPTPromptEncoder):
            encoder.tokenizer.chat = None
        with pytest.raises(UserError, match="no chat template"):
            encode_files([data], [CHAT], encoder)


def test_a_template_that_rewrites_earlier_turns_is_refused(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ loop.revindex }}{{ m.role }}:{{ m.content }}\n{% endfor %}"
    encoder = _encoder(tmp_path / "tokenizer", template)
    with pytest.raises(UserError, match="rewrites turns before message 3") as error:
        encode_files([_data(tmp_path, {"messages": CONVERSATION})], [CHAT], encoder)
    assert str(error.value.problems[0].where).endswith("chat.jsonl:1")


def test_an_error_in_a_chat_template_names_record_and_line() -> None:
    chat = Chat("{% for m in messages %}\n{{ raise_exception('roles must alternate') }}{% endfor %}", ())
    with pytest.raises(UserError, match="line 2 of the template: roles must alternate"):
        chat.training(CONVERSATION, "a.jsonl:7")


def test_a_chat_template_may_not_have_fields() -> None:
    for key in ("prompt_template", "answer_field"):
        (problem,) = replace(CHAT, **{key: "{x}"}).problems()
        assert "has no effect" in problem.what
    assert Tasks.of([CHAT]).find({"taskname": "chat"}, "") is CHAT


def test_conversations_with_the_same_question_are_told_apart_from_duplicates() -> None:
    contents = Contents(Tasks.of([CHAT]))
    for number, answer in enumerate(("ho", "ho", "hu")):
        contents.add({"prompt": "hi", "completion": answer}, f"a:{number}")
    contents.add({"prompt": "other", "completion": "ho"}, "a:3")
    assert contents.repeated == [("a:1", "a:0")]
    assert contents.contradictory == [("a:2", "a:0")]
