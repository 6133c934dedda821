# SPDX-License-Identifier: Apache-2.0
"""Records that are in memory instead of a data file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class GivenRecords:
    """Records in memory, read like those of a data file."""

    records: Sequence[Mapping[str, object]]
    """The records."""
    places: Sequence[str] = ()
    """The place of each record for messages; empty for `records[N]` with N from 0."""

    def __iter__(self) -> Iterator[tuple[str, dict[str, object]]]:
        """Yield each record and its place."""
        for number, record in enumerate(self.records):
            yield self.places[number] if self.places else f"records[{number}]", dict(record)


Source = str | Path | GivenRecords
"""A data file, or records in memory."""


def source_of(records: str | Path | Sequence[Mapping[str, object]]) -> Source:
    """Return the source that a path or a list of records means."""
    return records if isinstance(records, str | Path) else GivenRecords(records)
