# SPDX-License-Identifier: Apache-2.0
"""Data files with something that cannot be read: the message names the place."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pytest
from pyarrow import feather, parquet

from nemo_launcher.data.records import count_records, read_records, size_of
from nemo_launcher.errors import UserError

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("name", ["data.parquet", "data.arrow"])
def test_a_date_beyond_pythons_is_named_with_row_and_column(tmp_path: Path, name: str) -> None:
    days = pyarrow.array([0, 0, 40_000_000], pyarrow.int32()).cast(pyarrow.date32())
    table = pyarrow.table({"answer": ["a", "b", "c"], "day": days})
    if name.endswith(".parquet"):
        parquet.write_table(table, tmp_path / name)
    else:
        feather.write_feather(table, tmp_path / name, compression="uncompressed")
    with pytest.raises(UserError) as error:
        list(read_records(tmp_path / name))
    (problem,) = error.value.problems
    assert problem.where == f"{tmp_path / name}: row 3"
    assert "the column 'day' holds a value that cannot be read" in problem.what


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    link = tmp_path / "data.jsonl"
    link.symlink_to(tmp_path / "gone.jsonl")
    for read in (size_of, count_records):
        with pytest.raises(UserError, match=f"is a link to {tmp_path / 'gone.jsonl'}, which does not exist"):
            read(link)
