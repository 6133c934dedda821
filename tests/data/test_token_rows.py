# SPDX-License-Identifier: Apache-2.0
"""Each distinct token position has one row, and a file of rows holds what was written or is refused."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from nemo_launcher.data.hidden_file import (
    DamagedHiddenFileError,
    HiddenRows,
    TableShape,
    TableWriter,
    allocate,
    finish,
    open_table,
)
from nemo_launcher.data.token_rows import TokenRows
from nemo_launcher.families.gpt.samples import GPTSample
from nemo_launcher.families.t5.samples import T5Sample
from tests.caches import gpt_encoder, load
from tests.engine import random_tree, squad_records, write_jsonl

pytestmark = pytest.mark.unit


def check_gpt(samples: list[GPTSample]) -> TokenRows:
    """Check that two tokens share a row exactly if they and all tokens before them are equal."""
    rows = TokenRows(samples, is_causal=True)
    row_of: dict[tuple[int, ...], int] = {}
    for number, sample in enumerate(samples):
        found = rows.of(number).tolist()
        assert len(found) == sample.num_input_tokens
        for place, row in enumerate(found):
            assert row_of.setdefault(tuple(sample.input_ids[: place + 1]), row) == row
        start, count = rows.own(number)
        assert found[len(found) - count :] == list(range(start, start + count))
    assert sorted(row_of.values()) == list(range(rows.num_rows))
    return rows


@pytest.mark.parametrize("seed", range(8))
def test_gpt_samples_share_rows_of_common_prefixes(seed: int) -> None:
    generator = random.Random(seed)
    short = [
        GPTSample([generator.randrange(2) for _ in range(generator.randint(1, 8))], 1, {}, "")  # many common prefixes
        for _ in range(40)
    ]
    check_gpt(short)
    check_gpt(random_tree(seed, 300, max_length=100))


def test_a_sample_that_ends_within_another_runs_one_token_less() -> None:
    """The last token of [1, 2] does not run: [1, 2, 3] computes it."""
    assert check_gpt([GPTSample(ids, 1, {}, "") for ids in ([1, 2, 3], [1, 2], [1, 2, 4, 5])]).num_rows == 3


def test_identical_samples_share_all_rows() -> None:
    assert check_gpt([GPTSample([5, 6, 7, 8], 1, {}, "")] * 50).num_rows == 3


def test_t5_samples_share_rows_if_they_are_equal() -> None:
    prompts = [[1, 2, 3], [1, 2], [1, 2, 3], [4], [1, 2, 3, 4]]
    rows = TokenRows([T5Sample(ids, [0, 1], {}, "") for ids in prompts], is_causal=False)

    assert rows.num_rows == 3 + 2 + 1 + 4
    assert rows.of(0).tolist() == rows.of(2).tolist()
    found = [rows.of(number).tolist() for number in (0, 1, 3, 4)]
    assert sorted(row for part in found for row in part) == list(range(10))
    assert [len(part) for part in found] == [3, 2, 1, 4]


@pytest.mark.parametrize("with_prefixes", [True, False])
def test_a_cache_has_the_rows_of_its_samples(with_prefixes: bool, tmp_path: Path) -> None:
    data = [write_jsonl(tmp_path / "data.jsonl", squad_records(12))]
    cache = load(data, gpt_encoder(), tmp_path / "cache", with_prefixes=with_prefixes)
    rows, plain = TokenRows(cache, is_causal=True), TokenRows(list(cache), is_causal=True)

    assert (rows.num_rows, rows.digest) == (plain.num_rows, plain.digest)
    assert rows.digest != TokenRows(list(cache)[::-1], is_causal=True).digest
    assert [rows.of(number).tolist() for number in range(12)] == [plain.of(number).tolist() for number in range(12)]


# --- the file ---------------------------------------------------------------------------------------------------


def written(path: Path, table: torch.Tensor) -> TableShape:
    """Write a table in two parts, the second one first."""
    shape = TableShape(*table.shape, table.dtype)
    allocate(path, shape)
    writer = TableWriter(path, shape)
    checksum = writer.write(2, table[2:]) + writer.write(0, table[:2])
    writer.close()
    finish(path, shape, checksum)
    return shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_table_is_read_as_it_was_written(dtype: torch.dtype, tmp_path: Path) -> None:
    path, table = tmp_path / "table", torch.randn(7, 6).to(dtype)
    shape = written(path, table)

    assert path.stat().st_size == shape.file_bytes
    assert torch.equal(open_table(path, shape, verify=True), table)
    index = torch.tensor([6, 0, 0, 3])
    assert torch.equal(HiddenRows(path, 1, index).read(torch.device("cpu")), table[index][:, None])


@pytest.mark.parametrize("place", [0, 83, 167, -1, -20, -200, -285])
def test_a_changed_byte_is_found(place: int, tmp_path: Path) -> None:
    path = tmp_path / "table"
    shape = written(path, torch.randn(7, 6))
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)

    with pytest.raises(DamagedHiddenFileError):
        open_table(path, shape, verify=True)


def test_swapped_rows_are_found(tmp_path: Path) -> None:
    path = tmp_path / "table"
    shape = written(path, torch.randn(7, 6))
    content = path.read_bytes()
    path.write_bytes(content[24:48] + content[:24] + content[48:])

    with pytest.raises(DamagedHiddenFileError):
        open_table(path, shape, verify=True)


@pytest.mark.parametrize("size", [0, 10, 168, 400])
def test_a_truncated_file_is_refused(size: int, tmp_path: Path) -> None:
    path = tmp_path / "table"
    shape = written(path, torch.randn(7, 6))
    path.write_bytes(path.read_bytes()[:size])

    with pytest.raises(DamagedHiddenFileError):
        open_table(path, shape, verify=False)


def test_a_file_whose_rows_did_not_arrive_is_not_completed(tmp_path: Path) -> None:
    path, shape = tmp_path / "table", TableShape(7, 6, torch.float32)
    allocate(path, shape)
    writer = TableWriter(path, shape)
    checksum = writer.write(0, torch.ones(7, 6))
    writer.write(3, torch.zeros(1, 6))
    writer.close()

    with pytest.raises(DamagedHiddenFileError):
        finish(path, shape, checksum)
