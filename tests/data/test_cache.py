# SPDX-License-Identifier: Apache-2.0
"""The data cache: the same samples and groups as without it, and a new cache after any relevant change."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemo_launcher.data import cache as cache_module
from nemo_launcher.data.cache_file import SampleCache
from nemo_launcher.data.prefix_tree import PrefixOrder
from nemo_launcher.data.prompts import encode_files
from nemo_launcher.data.sample_order import PrefixShuffleSampler
from nemo_launcher.data.tokenizers import HuggingFaceTokenizer
from nemo_launcher.errors import UserError
from nemo_launcher.families.gpt.prompts import GPTPromptEncoder
from tests.caches import SQUAD, ByteTokenizer, files_in, gpt_encoder, load, t5_encoder, without_record, write_data
from tests.engine import TEMPLATE, save_tokenizer, squad_records, write_jsonl

pytestmark = pytest.mark.unit


@pytest.fixture
def data(tmp_path: Path) -> list[Path]:
    return write_data(tmp_path)


# --- the same samples -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [gpt_encoder, t5_encoder])
def test_samples_are_those_of_the_files_and_the_second_start_encodes_nothing(
    make: Callable[..., Any], data: list[Path], tmp_path: Path
) -> None:
    wanted = without_record(encode_files([str(path) for path in data], [SQUAD], make()))
    first = load(data, make(tokenizer=ByteTokenizer(first=70_000)), tmp_path / "other")
    assert max(max(sample.input_ids) for sample in first) > 65_535
    first, encoder = load(data, make(), tmp_path / "cache"), make()
    second = load(data, encoder, tmp_path / "cache")
    assert encoder.tokenizer.num_encoded == 0
    for samples in (first, second, pickle.loads(pickle.dumps(second))):
        assert isinstance(samples, SampleCache)
        assert len(samples) == len(wanted) == 40
        assert list(samples) == wanted
        assert samples[-1] == wanted[-1]
        assert [sample.num_trained_tokens for sample in samples] == [sample.num_trained_tokens for sample in wanted]
    assert len(files_in(tmp_path / "cache")) == 1


def test_pickled_it_is_small(data: list[Path], tmp_path: Path) -> None:
    samples = load(data, gpt_encoder(), tmp_path / "cache")
    assert len(pickle.dumps(samples)) < 1000 < sum(len(sample.input_ids) for sample in samples)


@pytest.mark.parametrize("shuffle", [False, True])
def test_the_order_of_the_samples_is_that_without_a_cache(shuffle: bool, data: list[Path], tmp_path: Path) -> None:
    plain = encode_files([str(path) for path in data], [SQUAD], gpt_encoder())
    for _ in range(2):
        cached = load(data, gpt_encoder(), tmp_path / "cache")
        assert cached.prefixes is not None
        assert len(cached.prefixes.members) == 40
        options: dict[str, Any] = {"shuffle": shuffle, "share_prefix": True, "seed": 3, "global_batch_size": 8}
        for epoch in range(2):
            samplers = [PrefixShuffleSampler(samples, **options) for samples in (plain, cached)]
            for sampler in samplers:
                sampler.set_epoch(epoch)
            assert list(samplers[0]) == list(samplers[1])


def test_too_long_samples_are_dropped_with_the_same_words_each_time(data: list[Path], tmp_path: Path) -> None:
    encoder = gpt_encoder(max_seq_length=190)
    plain_lines: list[str] = []
    paths = [str(path) for path in data]
    plain = encode_files(paths, [SQUAD], encoder, max_dropped_share=0.9, report=plain_lines.append)
    assert 0 < len(plain) < 40
    assert len(plain_lines) == 1
    for _ in range(2):
        lines: list[str] = []
        cached = load(data, encoder, tmp_path / "cache", lines.append, max_dropped_share=0.9)
        assert list(cached) == without_record(plain)
        assert lines == plain_lines
        wanted = PrefixOrder.of([sample.input_ids for sample in plain])
        assert cached.prefixes.members.tolist() == wanted.members.tolist()
        assert cached.prefixes.shared.tolist() == wanted.shared.tolist()


def test_remarks_are_made_each_time(data: list[Path], tmp_path: Path) -> None:
    """In inference, T5 cuts a prompt without truncate_field and reports it."""
    for _ in range(2):
        lines: list[str] = []
        cached = load(data, t5_encoder(for_train=False, max_seq_length=100), tmp_path / "cache", lines.append)
        assert lines == ["40 of 40 prompts were cut to their last 100 tokens"]
        assert all(sample.num_cut > 0 for sample in cached)


def test_a_cache_says_each_time_how_many_prompts_were_cut(data: list[Path], tmp_path: Path) -> None:
    cut = [replace(SQUAD, truncate_field="context")]
    for _ in range(2):
        lines: list[str] = []
        cached = load(data, gpt_encoder(max_seq_length=100), tmp_path / "cache", lines.append, templates=cut)
        count = sum(1 for sample in cached if sample.num_shortened)
        assert count > 0
        assert lines == [f"{count} of 40 prompts were cut to 100 tokens, at the end of their truncate_field"]


def test_memory_does_not_grow_with_the_tokens(tmp_path: Path) -> None:
    """Creating a cache costs a few integers per sample; a list of tokens costs eight bytes per token."""
    peaks = []
    for count in (200, 2200):
        path = write_jsonl(
            tmp_path / "data.jsonl", [{**record, "context": record["context"] * 10} for record in squad_records(count)]
        )
        tracemalloc.start()
        samples = load([path], gpt_encoder(max_seq_length=5000), tmp_path / "cache")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 2000 < 8 * len(samples[0].input_ids) / 5


# --- mistakes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "encoder"),
    [
        ("broken", gpt_encoder()),
        ("absent", gpt_encoder()),
        ("too_long", gpt_encoder(max_seq_length=190)),
        ("no_bos", gpt_encoder(add_bos=True)),
        ("decoder", t5_encoder(max_decoder_length=5)),
    ],
)
def test_mistakes_are_told_as_without_a_cache_and_leave_nothing(
    case: str, encoder: Any, data: list[Path], tmp_path: Path
) -> None:
    if case == "broken":
        for path in data:
            path.write_text(path.read_text().replace('"answer"', '"reply"', 2) + "{", encoding="utf-8")
    elif case == "absent":
        data[1].unlink()
    elif case == "no_bos":
        encoder.tokenizer.bos_id = None
    with pytest.raises(UserError) as plain:
        encode_files([str(path) for path in data], [SQUAD], encoder)
    with pytest.raises(UserError) as cached:
        load(data, encoder, tmp_path / "cache")
    assert cached.value.problems == plain.value.problems
    assert len(cached.value.problems) >= (4 if case in ("broken", "decoder") else 1)
    assert files_in(tmp_path / "cache") == []


def test_data_that_changes_while_it_is_read_is_not_cached(
    data: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = GPTPromptEncoder.encode

    def encode_and_change(self: Any, *args: Any) -> Any:
        with data[0].open("a") as file:
            file.write(" ")
        return encode(self, *args)

    monkeypatch.setattr(GPTPromptEncoder, "encode", encode_and_change)
    with pytest.raises(UserError, match="changed while it was read"):
        load(data, gpt_encoder(), tmp_path / "cache")
    assert files_in(tmp_path / "cache") == []


# --- the key ----------------------------------------------------------------------------------------------------


ENCODERS: dict[str, Callable[[], Any]] = {
    "add_bos": lambda: gpt_encoder(add_bos=True),
    "add_eos": lambda: gpt_encoder(add_eos=False),
    "max_seq_length": lambda: gpt_encoder(max_seq_length=999),
    "for_train": lambda: gpt_encoder(for_train=False),
    "nemo_compat": lambda: gpt_encoder(nemo_compat=True),
    "tokenizer": lambda: gpt_encoder(tokenizer=ByteTokenizer("other")),
    "family": t5_encoder,
    "decoder_starts_with_pad": lambda: t5_encoder(decoder_starts_with_pad=True),
    "ul2_prompt_token": lambda: t5_encoder(ul2_prompt_token="<extra_id_1>"),
    "max_decoder_length": lambda: t5_encoder(max_decoder_length=500),
}


def test_each_encoder_has_a_cache_of_its_own(data: list[Path], tmp_path: Path) -> None:
    load(data, gpt_encoder(), tmp_path)
    for count, make in enumerate(ENCODERS.values(), start=2):
        encoder = make()
        samples = load(data, encoder, tmp_path)
        assert list(samples) == without_record(encode_files([str(path) for path in data], [SQUAD], make()))
        assert len(list(tmp_path.glob("*.samples"))) == count


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt_template": TEMPLATE.replace(" question", "  question")},
        {"answer_only_loss": False},
        {"truncate_field": "context"},
    ],
)
def test_another_template_has_another_cache(changes: dict[str, Any], data: list[Path], tmp_path: Path) -> None:
    load(data, gpt_encoder(), tmp_path)
    encoder = gpt_encoder()
    load(data, encoder, tmp_path, templates=[replace(SQUAD, **changes)])
    assert encoder.tokenizer.num_encoded > 0
    assert len(list(tmp_path.glob("*.samples"))) == 2


def test_a_byte_of_any_file_its_order_and_the_other_settings_change_the_cache(
    data: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    variants: list[Callable[[], Any]] = [
        lambda: load(data, gpt_encoder(), cache),
        lambda: load(data[::-1], gpt_encoder(), cache),
        lambda: load(data, gpt_encoder(), cache, max_dropped_share=0.1),
        lambda: load(data, gpt_encoder(), cache, with_prefixes=False),
    ]
    for count, variant in enumerate(variants, start=1):
        variant()
        assert len(files_in(cache)) == count
    for path in data:
        stamp = path.stat().st_mtime_ns
        path.write_bytes(path.read_bytes().replace(b"lives", b"lived", 1))
        os.utime(path, ns=(stamp, stamp))
        changed = load(data, gpt_encoder(), cache)
        assert list(changed) == without_record(encode_files([str(p) for p in data], [SQUAD], gpt_encoder()))
    assert len(files_in(cache)) == 6
    monkeypatch.setattr(cache_module, "FORMAT", 1000)
    load(data, gpt_encoder(), cache)
    assert len(files_in(cache)) == 7


def test_the_same_data_elsewhere_is_the_same_cache(data: list[Path], tmp_path: Path) -> None:
    load(data, gpt_encoder(), tmp_path / "cache")
    moved = [shutil.copy(path, tmp_path / f"moved_{path.name}") for path in data]
    encoder = gpt_encoder()
    assert load(moved, encoder, tmp_path / "cache")[30].source == f"{moved[1]}:7"
    assert encoder.tokenizer.num_encoded == 0


def test_a_tokenizer_is_known_by_its_content(tmp_path: Path) -> None:
    for name in ("one", "copy", "other"):
        save_tokenizer(tmp_path / name)
    content = json.loads((tmp_path / "other" / "tokenizer.json").read_text())
    assert content["pre_tokenizer"]["add_prefix_space"] is False
    content["pre_tokenizer"]["add_prefix_space"] = True
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(content))
    one, copy, other = (HuggingFaceTokenizer(tmp_path / name) for name in ("one", "copy", "other"))
    assert one.text_to_ids("lives") != other.text_to_ids("lives")
    assert one.identity == copy.identity != other.identity


def test_without_an_identity_nothing_is_cached(data: list[Path], tmp_path: Path) -> None:
    samples = load(data, gpt_encoder(tokenizer=ByteTokenizer(None)), tmp_path / "cache")
    assert isinstance(samples, list)
    assert files_in(tmp_path / "cache") == []


def test_other_columns_and_another_form_have_another_cache(data: list[Path], tmp_path: Path) -> None:
    renamed = tmp_path / "renamed.jsonl"
    renamed.write_text("".join(path.read_text() for path in data).replace('"question"', '"query"'))
    columns = {"question": "query"}
    samples = load([renamed], gpt_encoder(), tmp_path / "c", columns=columns)
    assert [sample.input_ids for sample in samples] == [s.input_ids for s in load(data, gpt_encoder(), tmp_path / "d")]
    with pytest.raises(UserError, match="no field 'question'"):
        load([renamed], gpt_encoder(), tmp_path / "c")
