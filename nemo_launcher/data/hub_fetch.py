# SPDX-License-Identifier: Apache-2.0
"""Fetch a data set of the Hugging Face Hub into a Parquet file: `python -m nemo_launcher.data.hub_fetch SOURCE FILE`.

A process of its own, as `datasets` takes seconds to import. Prints its problems as JSON, and nothing else. Data that
needs a program of its own (trust_remote_code) is never run.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_launcher.data.hub import HubSource, manifest_of, parse_source
from nemo_launcher.errors import Problem, UserError, did_you_mean
from nemo_launcher.files.atomic import atomic_path, write_json
from nemo_launcher.files.foreign import first_line
from nemo_launcher.hub.fetching import Asked, child_status, hub_problem, not_fetched

if TYPE_CHECKING:
    import pyarrow

_ROWS = 1000
"""Records that are fetched and written at a time."""


def main(text: str, path: str) -> int:
    """Fetch the source that `text` names into the file at `path`, and return the exit status."""
    return child_status(lambda: fetch(parse_source(text, text), Path(path)))


def fetch(source: HubSource, file: Path) -> None:
    """Write a source's records to a Parquet file, and then the manifest with the commit that they come from.

    Raises UserError if the hub does not answer, or does not have or give out the source.
    """
    with _hub_errors(source, file):
        name, commit = _name_and_commit(source)
        with contextlib.redirect_stdout(sys.stderr):
            schema, tables = _tables(source, name, commit)
            manifest_of(file).unlink(missing_ok=True)
            with atomic_path(file) as temporary:
                records = _write(temporary, schema, tables)
                if records == 0:
                    raise UserError(Problem(str(source), "has no records", "name another part of the split"))
                size = temporary.stat().st_size
    write_json(manifest_of(file), {"source": str(source), "revision": commit, "records": records, "bytes": size})


def _name_and_commit(source: HubSource) -> tuple[str, str]:
    """Return the full name of a data set, as in `rajpurkar/squad` for `squad`, and the commit of its revision."""
    from huggingface_hub import HfApi

    info = HfApi().dataset_info(source.name, revision=source.revision)
    return info.id, str(info.sha)


def _tables(source: HubSource, name: str, commit: str) -> tuple[pyarrow.Schema, Iterator[pyarrow.Table]]:
    """Return the schema and the records of a source.

    They are streamed if the data set's card tells its columns and, for a part of a split, its numbers of records.
    Otherwise `datasets` downloads and converts the whole data set into its own cache.
    """
    import datasets

    builder = datasets.load_dataset_builder(name, source.config, revision=commit)
    told = builder.info.splits or {}
    lengths = {name: split.num_examples for name, split in told.items()}
    parts = datasets.ReadInstruction.from_spec(source.split)
    if told:
        _check_split(source, parts.to_spec(), list(told))
    if builder.info.features is None or not all(lengths.values()) or not lengths:
        builder.download_and_prepare()
        _check_split(source, parts.to_spec(), list(builder.info.splits or {}))
        whole = builder.as_dataset(split=parts).with_format("arrow")
        return whole.features.arrow_schema, whole.iter(_ROWS)
    return builder.info.features.arrow_schema, _streamed(builder, parts.to_absolute(lengths))


def _streamed(builder: Any, parts: Any) -> Iterator[pyarrow.Table]:
    for part in parts:
        whole = builder.as_streaming_dataset(split=part.splitname).skip(part.from_ or 0)
        count = None if part.to is None else part.to - (part.from_ or 0)
        yield from (whole if count is None else whole.take(count)).with_format("arrow").iter(_ROWS)


def _check_split(source: HubSource, spec: str, names: list[str]) -> None:
    wanted = [part.partition("[")[0].strip() for part in spec.split("+")]
    problems = [
        Problem(str(source), f"{source.name} has no split {name!r}", did_you_mean(name, names))
        for name in wanted
        if name not in names
    ]
    if problems:
        raise UserError(problems)


def _write(path: Path, schema: pyarrow.Schema, tables: Iterator[pyarrow.Table]) -> int:
    """Write tables to a Parquet file; return the number of their rows."""
    from pyarrow import parquet

    rows = 0
    with parquet.ParquetWriter(path, schema) as writer:
        for table in tables:
            writer.write_table(table.cast(schema))
            rows += table.num_rows
    return rows


@contextlib.contextmanager
def _hub_errors(source: HubSource, file: Path) -> Iterator[None]:
    """Turn the errors of the hub and of `datasets` into a UserError."""
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:  # of any library that reads the files; none of them is a mistake in this program
        raise UserError(_problem(source, file, error)) from error


def _problem(source: HubSource, file: Path, error: Exception) -> Problem:
    shown, where, page = first_line(error), str(source), f"https://huggingface.co/datasets/{source.name}"
    fix = f"unset HF_HUB_OFFLINE for one launch, or copy {file} and its .json from a machine that has fetched it"
    told = hub_problem(
        error,
        Asked(where, "data set", source.name, source.revision, page),
        disk=Problem(str(file), "", "free some space, or choose another data_dir"),
        offline=Problem(where, f"is not in {file.parent}, and HF_HUB_OFFLINE forbids to fetch it", fix),
    )
    if told is not None:
        return told
    if "scripts are no longer supported" in shown:
        fix = f"the hub may have converted it: {replace(source, revision='refs/convert/parquet', config=None)}"
        return Problem(where, "needs a program of its own, which is never run", fix)
    if isinstance(error, ValueError) and "onfig" in shown:  # BuilderConfig ... not found; Config name is missing
        return Problem(where, shown, "name one of them: &config=NAME")
    if isinstance(error, (ValueError, AssertionError)):
        return Problem(where, shown, f"compare it with {page}")
    other = f"load_dataset({source.name!r}, split={source.split!r}).to_parquet('data.parquet')"
    return not_fetched(error, where, f"run {other} on another machine, copy the file and name it here")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
