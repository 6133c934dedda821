# SPDX-License-Identifier: Apache-2.0
"""Published datasets beside SQuAD are prepared from files in their published forms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemo_launcher.config.datasets import DATASETS
from nemo_launcher.data.preparation import builder_of
from nemo_launcher.errors import UserError

pytestmark = pytest.mark.unit


def as_lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


MULTIRC = {
    "idx": 0,
    "passage": {
        "text": "A ferry left.",
        "questions": [
            {
                "question": "What left?",
                "idx": 0,
                "answers": [{"text": "A ferry", "idx": 0, "label": 1}, {"text": "A bus", "idx": 1, "label": 0}],
            },
        ],
    },
}
# dataset, folder, names of train and dev, content, and the expected prompts with answers
FORMS = [
    (
        "boolq",
        "BoolQ",
        ("train.jsonl", "val.jsonl"),
        as_lines({"question": "is it", "passage": "It is.", "idx": 0, "label": True}),
        [({"passage": "It is.", "question": "is it"}, "yes")],
    ),
    (
        "boolq",
        "boolq",
        ("train.jsonl", "dev.jsonl"),
        as_lines({"question": "is it", "title": "It", "answer": False, "passage": "It is not."}),
        [({"passage": "It is not.", "question": "is it"}, "no")],
    ),
    (
        "rte",
        "RTE",
        ("train.jsonl", "val.jsonl"),
        as_lines({"premise": "A.", "hypothesis": "B.", "label": "not_entailment", "idx": 0}),
        [({"premise": "A.", "hypothesis": "B."}, "no")],
    ),
    (
        "rte",
        "RTE",
        ("train.tsv", "dev.tsv"),
        'index\tsentence1\tsentence2\tlabel\n0\tHe said "no.\tHe spoke.\tentailment\n',
        [({"premise": 'He said "no.', "hypothesis": "He spoke."}, "yes")],
    ),
    (
        "sst2",
        "SST-2",
        ("train.tsv", "dev.tsv"),
        'sentence\tlabel\na "fine film \t1\ndull \t0\n',
        [({"sentence": 'a "fine film'}, "positive"), ({"sentence": "dull"}, "negative")],
    ),
    (
        "cnn_dailymail",
        "cnn_dailymail",
        ("train.csv", "validation.csv"),
        'id,article,highlights\nx1,"One, two.","First line .\nSecond line ."\n',
        [({"article": "One, two."}, "First line . Second line .")],
    ),
    (
        "multirc",
        "MultiRC",
        ("train.jsonl", "val.jsonl"),
        as_lines(MULTIRC),
        [
            ({"passage": "A ferry left.", "question": "What left?", "candidate": "A ferry"}, "yes"),
            ({"passage": "A ferry left.", "question": "What left?", "candidate": "A bus"}, "no"),
        ],
    ),
]


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(("name", "folder", "names", "content", "expected"), FORMS)
def test_published_files_become_prompt_data(
    name: str, folder: str, names: tuple[str, str], content: str, expected: list, tmp_path: Path
) -> None:
    (tmp_path / folder).mkdir()
    for file in names:
        (tmp_path / folder / file).write_text(content)
    dataset, out = DATASETS[name], tmp_path / "out"
    counts = builder_of(dataset).prepare(tmp_path, out, download=True, report=lambda _: None)
    assert counts == dict.fromkeys(dataset.files, len(expected))
    answered = [{"taskname": name, **prompt, "answer": answer} for prompt, answer in expected]
    assert lines(out / dataset.train) == lines(out / dataset.validation) == answered
    assert lines(out / dataset.test) == [{"taskname": name, **prompt} for prompt, _ in expected]
    assert [truth["answer"] for truth in lines(out / dataset.ground_truth)] == [[answer] for _, answer in expected]
    assert builder_of(dataset).is_prepared(tmp_path, out)


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "squad"])
def test_absent_files_are_asked_for_and_the_advice_works(name: str, tmp_path: Path) -> None:
    builder, out = builder_of(DATASETS[name]), tmp_path / "out"
    with pytest.raises(UserError) as told:
        builder.prepare(tmp_path, out, download=True, report=lambda _: None)
    (problem,) = told.value.problems
    folder = Path(problem.fix.rpartition("put both into ")[2])
    folder.mkdir(parents=True)
    form = next(form for form in FORMS if form[0] == name)
    for file in form[2]:
        assert file in problem.what
        (folder / file).write_text(form[3])
    builder.prepare(tmp_path, out, download=False, report=lambda _: None)


def test_all_problems_of_both_files_at_once(tmp_path: Path) -> None:
    (tmp_path / "RTE").mkdir()
    (tmp_path / "RTE/train.tsv").write_text("index\tsentence1\tsentence2\tlabel\n0\tA\tB\tperhaps\n")
    (tmp_path / "RTE/dev.tsv").write_text("index\tsentence1\tsentence2\tlabel\n0\tA\tentailment\n")
    with pytest.raises(UserError) as told:
        builder_of(DATASETS["rte"]).prepare(tmp_path, tmp_path / "out", download=False, report=lambda _: None)
    text = str(told.value)
    assert f"{tmp_path}/RTE/train.tsv:2: has the label 'perhaps'" in text
    assert f"{tmp_path}/RTE/dev.tsv:2: has 3 values, but the header has 4" in text
    assert not list((tmp_path / "out").glob("*.jsonl"))
