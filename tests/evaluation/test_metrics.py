# SPDX-License-Identifier: Apache-2.0
"""Each metric gives the value of the library or definition that it is named after; names are checked."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from nemo_launcher.data.labels import Label
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.errors import UserError
from nemo_launcher.evaluation.figures import choose, scores_of, value_of
from nemo_launcher.evaluation.metrics import registry
from nemo_launcher.evaluation.metrics.metric import Answered
from nemo_launcher.evaluation.metrics.overlap import rouge_scorer
from nemo_launcher.evaluation.metrics.registry import find, name_problems, names_for, register, registered
from nemo_launcher.evaluation.questions import Question

pytestmark = pytest.mark.unit

WORDS = ("the", "cat", "sat", "on", "a", "mat", "dogs", "running", "quickly", "home", "today", "Old", "tree.")
LABELS = ("world", "sports", "business", "science", "politics")


def texts(seed: int, count: int) -> list[Answered]:
    """Return predictions with one to three references that share some words with them."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        words = list(rng.choice(WORDS, size=int(rng.integers(0, 9))))
        answers = [" ".join([*words[1:], *rng.choice(WORDS, size=2)]) for _ in range(int(rng.integers(1, 4)))]
        found.append(Answered(prediction=" ".join(words), answers=answers))
    return found


def labels(seed: int, count: int) -> list[Answered]:
    """Return labels of which about two thirds are right; some predictions are no label."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(LABELS, size=count)
    predicted = np.where(rng.random(count) < 0.6, truth, rng.choice([*LABELS, "none of them"], size=count))
    return [Answered(prediction=f" {p}\n", answers=[str(t)]) for p, t in zip(predicted, truth, strict=True)]


def value(name: str, questions: Sequence[Answered]) -> float:
    metric = find([name])[0]
    return float(metric.figure(metric.statistics(questions).sum(axis=0)))


def columns(questions: Sequence[Answered]) -> list[list[str | None]]:
    """Return references as sacrebleu takes them: the first of each question, the second, and so on."""
    longest = max(len(question.answers) for question in questions)
    return [[q.answers[i] if i < len(q.answers) else None for q in questions] for i in range(longest)]


@pytest.mark.parametrize("seed", range(3))
def test_bleu_and_chrf_are_sacrebleus_of_the_corpus(seed: int) -> None:
    import sacrebleu

    questions = texts(seed, 40)
    predictions = [question.prediction for question in questions]
    assert value("bleu", questions) == pytest.approx(
        sacrebleu.corpus_bleu(predictions, columns(questions)).score / 100, abs=1e-9
    )
    assert value("chrf", questions) == pytest.approx(
        sacrebleu.corpus_chrf(predictions, columns(questions)).score / 100, abs=1e-9
    )
    alone = find(["bleu"])[0].scores
    assert alone is not None
    sentence = sacrebleu.sentence_bleu(questions[5].prediction, list(questions[5].answers))
    assert alone([questions[5]])[0] == pytest.approx(sentence.score / 100, abs=1e-9)


def test_no_common_word_is_no_bleu_and_four_words_are_not_needed() -> None:
    assert value("bleu", [Answered(prediction="", answers=["a b c d"])]) == 0.0
    scores = find(["bleu"])[0].scores
    assert scores is not None
    assert scores([Answered(prediction="two words", answers=["two words"])]) == [pytest.approx(1.0)]


def test_rouge_is_that_of_rouge_score_with_the_best_answer() -> None:
    scorer, questions = rouge_scorer()(["rougeL"], use_stemmer=True), texts(4, 30)
    expected = [max(scorer.score(a, q.prediction)["rougeL"].fmeasure for a in q.answers) for q in questions]
    assert value("rougeL", questions) == pytest.approx(np.mean(expected))
    assert value("rougeL", [Answered(prediction="he runs", answers=["he running"])]) == 1.0  # the stemmer


def test_rouge_leaves_a_redirected_stderr_open() -> None:
    """absl, which rouge-score imports, would close it when Hydra configures logging."""
    code = (
        "import contextlib, io, logging.config\n"
        "from nemo_launcher.evaluation.metrics.overlap import rouge_l\n"
        "shown = io.StringIO()\n"
        "with contextlib.redirect_stderr(shown): assert rouge_l('a b', 'a b') == 1.0\n"
        "logging.config.dictConfig({'version': 1})\n"
        "assert not shown.closed\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_rouge_compares_the_words_of_other_scripts() -> None:
    scorer = rouge_scorer()(["rougeL"], use_stemmer=True)
    for latin in (
        "caf\u00e9 cafe\u0301 na\u00efve",
        "A-B_c 3.5 running \U0001f600 \u201cdogs\u201d",
        "\u0130stanbul",
        "",
    ):
        expected = scorer.score(latin, "caf runs dogs").get("rougeL").fmeasure
        assert value("rougeL", [Answered(prediction="caf runs dogs", answers=[latin])]) == expected, latin
    for prediction, answer, expected in (
        ("\u6211\u559c\u6b22\u82f9\u679c", "\u6211\u559c\u6b22\u82f9\u679c", 1.0),
        ("\u6211\u559c\u6b22", "\u6211\u559c\u6b22\u82f9\u679c\u3002", 0.75),
        ("\u041c\u043e\u0441\u043a\u0432\u0430 GPT", "\u043c\u043e\u0441\u043a\u0432\u0430 gpt", 1.0),
        ("2024 \u0933\u093f", "2024 \u0933\u0940", 0.5),  # vowel signs belong to the word
        ("\u0e01", "\u0e02", 0.0),
    ):
        assert value("rougeL", [Answered(prediction=prediction, answers=[answer])]) == pytest.approx(expected), answer


def test_a_perfect_corpus_has_100_percent_and_not_more() -> None:
    assert value("bleu", [Answered(prediction="a b c d e", answers=["a b c d e"])] * 30) == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_accuracy_and_macro_f1_are_scikit_learns(seed: int) -> None:
    from sklearn.metrics import accuracy_score, f1_score

    questions = labels(seed, 80)
    truth, predicted = [q.answers[0] for q in questions], [q.prediction.strip() for q in questions]
    assert value("accuracy", questions) == pytest.approx(accuracy_score(truth, predicted))
    expected = f1_score(truth, predicted, labels=sorted(set(truth)), average="macro", zero_division=0)
    assert value("macro_f1", questions) == pytest.approx(expected)


def test_a_resample_without_a_label_is_scored_by_the_others() -> None:
    metric = find(["macro_f1"])[0]
    statistics = metric.statistics(labels(1, 40))
    assert np.isfinite(metric.figure(statistics[:3])).all()
    assert metric.figure(statistics.sum(axis=0)[None].repeat(2, axis=0)).shape == (2,)


@pytest.mark.parametrize(
    ("prediction", "answer", "right"),
    [
        ("world", "world", 1.0),
        ("  world \n", "world", 1.0),
        ("new  york", "new york", 1.0),
        ("cafe\u0301", "caf\u00e9", 1.0),
        ("World", "world", 0.0),
        ("world.", "world", 0.0),
        ("us", "US", 0.0),  # labels that differ by case are two labels
    ],
)
def test_labels_are_equal_up_to_white_space(prediction: str, answer: str, right: float) -> None:
    assert value("accuracy", [Answered(prediction=prediction, answers=["other", answer])]) == right


# --- names --------------------------------------------------------------------------------------------------------


def test_an_unknown_name_gets_a_suggestion_that_is_accepted() -> None:
    (problem,) = name_problems(["acuracy"], "evaluation.metrics")
    assert problem.fix == "did you mean 'accuracy'?"
    (problem,) = name_problems(["accuracy", "accuracy"], "evaluation.metrics")
    assert "twice" in problem.what
    assert name_problems([*registered()], "evaluation.metrics") == []
    with pytest.raises(UserError) as error:
        find(["one", "two"])
    assert len(error.value.problems) == 2


def test_a_library_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda name: None)
    (problem,) = name_problems(["bleu", "accuracy"], "evaluation.metrics")
    assert "'bleu' needs sacrebleu" in problem.what
    assert "[metrics]" in problem.fix


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="'f1' is registered already"):
        register(registered()["f1"])


def test_the_registry_imports_nothing_heavy() -> None:
    code = (
        "import json, sys; from nemo_launcher.evaluation.metrics.registry import registered; registered();"
        "print(json.dumps([m for m in ('torch', 'numpy', 'sacrebleu', 'nltk', 'scipy') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize("name", sorted(registered()))
def test_questions_without_answers_alone_have_scores_of_none(name: str) -> None:
    metric = registered()[name]
    questions = [Answered(prediction="text", answers=[])] * 2
    expected = [0.0, 0.0] if metric.scores_unanswerable else [None, None]
    assert scores_of(metric, questions) == expected
    assert value_of(metric, questions) == (0.0 if metric.scores_unanswerable else None)


def test_an_enormous_loss_is_an_infinite_perplexity_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    answered = Answered(prediction="", answers=["a"], nll_sum=1e6, answer_tokens=1)
    assert value("perplexity", [answered]) == float("inf")
    assert not recwarn.list


def test_free_text_has_no_macro_f1() -> None:
    def question(number: int, answer: str) -> Question:
        template = TaskTemplate(taskname="qa", prompt_template="{q}{a}", answer_field="a")
        return Question(number=number, template=template, group=number, label=Label([answer], f"f:{number}", {}))

    few = [question(number, str(number % 9)) for number in range(5000)]
    assert [metric.name for metric in choose(["macro_f1"], few).by_task["qa"]] == ["macro_f1"]
    many = [question(number, str(number)) for number in range(5000)]
    with pytest.raises(UserError, match="5,000 questions have 5,000 different answers"):
        choose(["accuracy", "macro_f1"], many)


@pytest.mark.parametrize(
    ("answers", "names"),
    [
        ([["a"], ["b"]] * 6, ("accuracy", "macro_f1", "exact_match", "f1")),
        ([["a"], ["b"]] * 2, ("exact_match", "f1")),  # 2 questions for each answer
        ([["a"], ["b", "c"]] * 6, ("exact_match", "f1")),
        ([["a"], ["b"], []] * 6, ("exact_match", "f1")),
        ([[str(i)] for i in range(20)] * 3, ("accuracy", "macro_f1", "exact_match", "f1")),
        ([[str(i)] for i in range(21)] * 3, ("exact_match", "f1")),
        ([["a"]] * 9, ("exact_match", "f1")),  # nothing to tell apart
    ],
)
def test_few_labels_make_a_classification(answers: list[list[str]], names: tuple[str, ...]) -> None:
    assert names_for(answers) == names


@pytest.mark.parametrize("name", sorted(registered()))
def test_scores_and_figures_of_every_metric_lie_in_range(name: str) -> None:
    metric = registered()[name]
    make: Callable[[int, int], list[Answered]] = labels if name in registry.LABELS else texts
    questions = [
        Answered(prediction=q.prediction, answers=q.answers, nll_sum=float(i), answer_tokens=3)
        for i, q in enumerate(make(7, 25))
    ]
    if metric.needs == "choices":
        pytest.skip("has its own tests")
    figure = value(name, questions)
    assert figure >= 0
    assert figure <= 1 or not metric.is_share
    if metric.scores is not None:
        scores = metric.scores(questions)
        assert len(scores) == len(questions)
        assert all(score >= 0 and (score <= 1 or not metric.is_share) for score in scores)
        if metric.kind != "corpus":
            assert figure == pytest.approx(np.mean(scores))
        if metric.kind == "proportion":
            assert set(scores) <= {0.0, 1.0}
