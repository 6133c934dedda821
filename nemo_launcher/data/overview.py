# SPDX-License-Identifier: Apache-2.0
"""What data files contain: records, fields, labels, duplicates and, with a tokenizer, tokens. For `nemo-launcher data`.

Imports no torch unless samples are encoded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from nemo_launcher.data.duplicates import Contents
from nemo_launcher.data.histogram import Quantiles, histogram
from nemo_launcher.data.jsonl import MAX_PROBLEMS
from nemo_launcher.data.printable import printable
from nemo_launcher.data.record_values import has_value, prepared
from nemo_launcher.data.records import read_records, table_header
from nemo_launcher.data.tasks import Tasks, template_problems
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.errors import Problem, UserError

if TYPE_CHECKING:
    from nemo_launcher.data.near_samples import NearSamples
    from nemo_launcher.data.samples import Sample
    from nemo_launcher.data.token_statistics import TokenCollector, TokenStatistics

MAX_LABELS = 20
"""Fields with more distinct values are not labels."""
_SHOWN_PAIRS, _SHOWN_CHARACTERS, _NAME_WIDTH = 3, 40, 17


@dataclass(slots=True)
class Pairs:
    """Records that equal earlier ones."""

    count: int
    """Their number."""
    examples: list[tuple[str, str]]
    """The first of them: `file:line` of the record, and of the earlier one."""

    @classmethod
    def of(cls, pairs: Sequence[tuple[str, str]]) -> Pairs:
        """Return the number of pairs and the first ones."""
        return cls(len(pairs), list(pairs[:_SHOWN_PAIRS]))

    def __str__(self) -> str:
        shown = [f"{_line(where)} = {_line(earlier)}" for where, earlier in self.examples]
        more = ", ..." if self.count > len(shown) else ""
        return f"{self.count:,}" + (f" (lines {', '.join(shown)}{more})" if shown else "")


@dataclass(slots=True)
class Overview:
    """What a data file contains."""

    file: str
    """The file."""
    table: str | None = None
    """How the header of a CSV or TSV file is read; None for other forms."""
    records: int = 0
    """The number of records."""
    fields: dict[str, int] = field(default_factory=dict)
    """The number of records that have each field."""
    characters: dict[str, Quantiles] = field(default_factory=dict)
    """The lengths of the texts in each field."""
    tasks: dict[str, int] = field(default_factory=dict)
    """The number of records of each task, for a file with tasknames."""
    labels: dict[str, dict[str, int]] = field(default_factory=dict)
    """The number of records with each value, for fields with few distinct values."""
    repeated: Pairs = field(default_factory=lambda: Pairs(0, []))
    """Records that equal an earlier one."""
    contradictory: Pairs = field(default_factory=lambda: Pairs(0, []))
    """Records with the prompt of an earlier one but another answer."""
    common: dict[str, Pairs] = field(default_factory=dict)
    """Records whose prompt is in an earlier file, by that file."""
    near: Pairs | None = None
    """Samples that are nearly equal, but not equal, to an earlier one; None if they were not looked for."""
    near_common: dict[str, Pairs] = field(default_factory=dict)
    """Samples that are equal or nearly equal to one in an earlier file, by that file."""
    tokens: TokenStatistics | None = None
    """The samples' tokens; None without a tokenizer."""


@dataclass(frozen=True, slots=True)
class Reader:
    """How records become samples."""

    tasks: Tasks
    """The templates; none if they are not known."""
    answer_field: str | None = None
    """The answer's field, if there are no templates."""
    columns: Mapping[str, str] | None = None
    """The columns of renamed fields (data.records)."""
    encoding: Callable[[str], Encoding] | None = None
    """Returns how a file is encoded; None without a tokenizer."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """How the records of a file become samples."""

    samples: Callable[[], Iterator[Sample]]
    """Yields the samples as training does."""
    collector: TokenCollector
    """Collects them."""
    near: NearSamples | None = None
    """Compares them with each other and with those of other files; None not to."""


def overviews(files: Sequence[str], reader: Reader) -> list[Overview]:
    """Return the overview of each file. Raises UserError with the problems of all files."""
    found: list[Overview] = []
    problems: list[Problem] = []
    earlier: list[Contents] = []
    for file in files:
        contents = Contents(reader.tasks)
        try:
            found.append(_overview(file, reader, contents, dict(zip(files, earlier, strict=False))))
        except UserError as error:
            problems += error.problems
        earlier.append(contents)
    if problems:
        raise UserError(problems)
    return found


def _overview(file: str, reader: Reader, contents: Contents, earlier: Mapping[str, Contents]) -> Overview:
    header = table_header(file)
    overview, values = Overview(file, None if header is None else str(header)), _Values(reader)
    for where, record in _records(file, reader, overview):
        overview.records += 1
        contents.add(record, where, earlier.values())
        values.add(record, where)
    overview.fields = dict(values.fields)
    overview.characters = {name: Quantiles.of(lengths) for name, lengths in values.lengths.items()}
    overview.tasks = dict(values.tasks.most_common())
    overview.labels = values.labels()
    overview.repeated = Pairs.of(contents.repeated)
    overview.contradictory = Pairs.of(contents.contradictory)
    overview.common = {name: Pairs.of(contents.common[n]) for n, name in enumerate(earlier) if n in contents.common}
    return overview


def _records(file: str, reader: Reader, overview: Overview) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield each record and its place; with a tokenizer, set the statistics of their samples at the end."""
    if reader.encoding is None:
        yield from _checked(file, reader)
        return
    encoding = reader.encoding(file)
    for sample in encoding.samples():
        encoding.collector.add(sample)
        if encoding.near is not None:
            encoding.near.add(sample)
        yield sample.source, sample.record
    places = encoding.collector.places_to_show()
    first = enumerate(islice(encoding.samples(), max(places, default=-1) + 1))
    shown = {place: sample for place, sample in first if place in places}
    overview.tokens = encoding.collector.statistics([shown[place] for place in places])
    if encoding.near is not None:
        near, common = encoding.near.compared(file)
        overview.near = Pairs.of(near)
        overview.near_common = {name: Pairs.of(places) for name, places in common.items()}


def _checked(file: str, reader: Reader) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield the records that fit their template. Raises UserError at the end for the others."""
    problems: dict[str, Problem] = {}
    for where, record in read_records(file, reader.columns):
        found = reader.tasks.find(record, where) if reader.tasks.by_name else None
        if isinstance(found, TaskTemplate):
            has_answer = found.answer_field is not None and has_value(record, found.answer_field)
            record = prepared(record, found, for_train=has_answer)
            wrong = template_problems(record, where, found, for_train=has_answer, nemo_compat=False)
        else:
            wrong = [] if found is None else [found]
        for problem in wrong:
            problems.setdefault(problem.what, problem)
        if len(problems) >= MAX_PROBLEMS:
            break
        if not wrong:
            yield where, record
    if problems:
        raise UserError(list(problems.values()))


class _Values:
    """Counts the values of each field."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.fields: Counter[str] = Counter()
        self.tasks: Counter[str] = Counter()
        self.lengths: dict[str, list[int]] = {}
        self._counts: dict[str, Counter[str] | None] = {}

    def add(self, record: Mapping[str, object], where: str) -> None:
        self.fields.update(record.keys())
        template = self._reader.tasks.find(record, where) if self._reader.tasks.by_name else None
        if "taskname" in record:
            self.tasks[str(record["taskname"])] += 1
        answer = template.answer_field if isinstance(template, TaskTemplate) else self._reader.answer_field
        for name, value in record.items():
            if isinstance(value, str) and name != "taskname":
                self.lengths.setdefault(name, []).append(len(value))
            if name != "taskname" and (answer is None or name == answer):
                self._count(name, value)

    def _count(self, name: str, value: object) -> None:
        counts = self._counts.setdefault(name, Counter())
        if counts is None:
            return
        counts[str(value)] += 1
        if len(counts) > MAX_LABELS:
            self._counts[name] = None

    def labels(self) -> dict[str, dict[str, int]]:
        """Return the values of fields that have few distinct ones, each of them twice on average or more."""
        found = {name: counts for name, counts in self._counts.items() if counts is not None}
        return {name: dict(counts.most_common()) for name, counts in found.items() if 2 * len(counts) <= counts.total()}


# --- text -----------------------------------------------------------------------------------------------------------


def readable(overview: Overview) -> list[str]:
    """Return lines of at most 80 columns, apart from long names."""
    rows = {} if overview.table is None else {"table": overview.table}
    rows |= {"records": f"{overview.records:,}"}
    if len(overview.tasks) > 1:
        rows["tasks"] = ", ".join(f"{name} {count:,}" for name, count in overview.tasks.items())
    if overview.tokens is None:
        some = {name: count for name, count in overview.fields.items() if count < overview.records}
        rows["fields"] = ", ".join(f"{name} (in {some[name]:,})" if name in some else name for name in overview.fields)
        rows |= {f"  {name}": f"{lengths} characters" for name, lengths in overview.characters.items()}
    rows["duplicates"] = str(overview.repeated)
    if overview.contradictory.count:
        rows["other answer"] = f"{overview.contradictory} has the same prompt"
    rows |= {} if overview.near is None else {"nearly equal": str(overview.near)}
    lines = [overview.file, *(f"  {name:<{_NAME_WIDTH}} {value}" for name, value in rows.items())]
    for title, common in (("also in", overview.common), ("nearly equal in", overview.near_common)):
        for file, pairs in common.items():
            lines += [f"  {title:<{_NAME_WIDTH}} {file}", f"  {'':<{_NAME_WIDTH}} {pairs}"]
    for name, counts in overview.labels.items():
        lines += _label_lines(name, counts)
    lines += [] if overview.tokens is None else _token_lines(overview.tokens)
    return [printable(line) for line in lines]


def _label_lines(name: str, counts: Mapping[str, int]) -> list[str]:
    total = sum(counts.values())
    shown = [printable(value.replace("\n", " "))[:_SHOWN_CHARACTERS] for value in counts]  # several may begin alike
    width = max(map(len, shown))
    return [
        f"  values of {name}",
        *(
            f"    {value:<{width}} {count:>9,} {100 * count / total:5.1f}%"
            for value, count in zip(shown, counts.values(), strict=True)
        ),
    ]


def _token_lines(tokens: TokenStatistics) -> list[str]:
    rows = {
        "tokens": str(tokens.lengths),
        "limit": f"{tokens.limit:,} tokens: {_over(tokens)}, {tokens.truncated:,} truncated",
        "in the loss": _in_the_loss(tokens),
    }
    if tokens.computed_share is not None:
        share = f"{100 * tokens.computed_share:.0f}% of the tokens are computed"
        rows["shared prefixes"] = f"{share} (in batches of {tokens.global_batch_size:,})"
    lines = [f"  {name:<{_NAME_WIDTH}} {value}" for name, value in rows.items()]
    if tokens.too_long:
        lines.append(f"  {'':<{_NAME_WIDTH}} to keep them: {tokens.limit_advice}, or set truncate_field")
    lines += ["", *(f"  {line}" for line in histogram(tokens.histogram))]
    for sample in tokens.samples:
        lines += ["", *(f"  {line}" for line in sample.lines())]
    return lines


def _in_the_loss(tokens: TokenStatistics) -> str:
    if tokens.trained_tokens is None:
        return f"none of {tokens.tokens:,} tokens: the records have no answers"
    share = tokens.trained_tokens / max(1, tokens.tokens)
    return f"{tokens.trained_tokens:,} of {tokens.tokens:,} tokens ({100 * share:.1f}%)"


def _over(tokens: TokenStatistics) -> str:
    return f"{tokens.too_long:,} too long (longest: {tokens.longest})" if tokens.too_long else "none too long"


def _line(where: str) -> str:
    return where.rpartition(":")[2]
