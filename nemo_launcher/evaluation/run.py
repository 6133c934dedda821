# SPDX-License-Identifier: Apache-2.0
"""The evaluation job: predictions and metrics of an adapter and, optionally, of the frozen base model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from nemo_launcher.adapters.archive import check_adapter, load_adapter, read_adapter
from nemo_launcher.adapters.peft import method_mismatch, method_name
from nemo_launcher.config.load import Loaded
from nemo_launcher.config.sections import Evaluation
from nemo_launcher.data.labels import Label, find_labels
from nemo_launcher.data.prompts import encode_files
from nemo_launcher.data.samples import Sample
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.evaluation import report
from nemo_launcher.evaluation.adapter_prompts import AdapterPrompts
from nemo_launcher.evaluation.answer_keys import Adapter, answers_key, scores_key
from nemo_launcher.evaluation.answered import with_answers
from nemo_launcher.evaluation.figures import Chosen, Json, choose, figures
from nemo_launcher.evaluation.file_names import CHOICES_SUFFIX, LIKELIHOODS_SUFFIX, OF_BASE
from nemo_launcher.evaluation.generation import generate
from nemo_launcher.evaluation.kept_answers import SCORES, TOKENS, Kind, Number
from nemo_launcher.evaluation.likelihoods import Answers, Likelihoods
from nemo_launcher.evaluation.metrics.registry import find, split_model_problems
from nemo_launcher.evaluation.predictions import check_names, score_of, write_predictions
from nemo_launcher.evaluation.provenance import evaluation_provenance, write_evaluation_provenance
from nemo_launcher.evaluation.questions import Question, questions_of
from nemo_launcher.evaluation.ranking import Ranked, Ranking
from nemo_launcher.evaluation.replica_answers import ReplicaAnswers
from nemo_launcher.evaluation.sampling import Sampling
from nemo_launcher.evaluation.scores_file import remove_scores, write_scores
from nemo_launcher.evaluation.squad_score import Score
from nemo_launcher.families.base import Base, load_base
from nemo_launcher.files.atomic import finite_or_none, write_json
from nemo_launcher.megatron import parallel
from nemo_launcher.megatron.fused import set_fused
from nemo_launcher.megatron.fused_check import uses_fused
from nemo_launcher.megatron.sizes import ParallelSizes
from nemo_launcher.runtime import ranks
from nemo_launcher.runtime.agreement import check_same, file_checksum, flat_settings
from nemo_launcher.runtime.precision import allow_tf32, computed_dtype
from nemo_launcher.runtime.progress import Progress


def evaluate(job: Loaded[Evaluation]) -> None:
    """Run one evaluation job from its resolved configuration."""
    config = job.section
    parallel.check_world(config.trainer.devices, config.trainer.num_nodes)
    check_names(config.pred_file_path)
    dtype = computed_dtype(config.trainer.precision, "trainer.precision")
    allow_tf32(config.trainer.tf32)
    fuses = uses_fused(config.fused_kernels, "fused_kernels", parallel.local_device(), dtype)
    sampling = Sampling.of_job(config.inference)  # reports values out of range before anything is read
    find(config.metrics or ())  # so does this for names of metrics
    sizes = ParallelSizes.of(config)
    problems = split_model_problems(config.metrics or (), sizes.tensor * sizes.pipeline, "metrics")
    if problems:
        raise UserError(problems)
    check_same(lambda: _values_of_rank(job))
    adapter_config, adapter_state = read_adapter(config.adapter_model_file)
    _check_method(config, adapter_config)
    training = report.training_figures(config)
    recipe = AdapterPrompts.read(adapter_config)
    templates = _templates(recipe, config.adapter_model_file)
    _warn_about_training_files(config.data_paths, recipe)
    only = templates[0].taskname if recipe.names_no_task else None  # NeMo's peft data has no task names
    columns = recipe.columns if config.fields is None else config.fields
    labels = find_labels(config.data_paths, config.ground_truth_file_path, templates, only_task=only, columns=columns)
    print(f"loading the base model {config.language_model_path}", flush=True)
    base = load_base(config.language_model_path, dtype=dtype, sizes=sizes, family=config.run.model_family)
    set_fused(base.model, fuses)
    check_adapter(adapter_config, adapter_state, base, config.adapter_model_file)
    if config.nemo_compat:
        sampling = sampling.as_nemo(base.family.nemo_length(recipe.decoder_seq_length))
    encoder = base.family.prompt_encoder(
        base.tokenizer,
        base.shape,
        recipe.settings,
        nemo_compat=config.nemo_compat,
        tokens_to_generate=sampling.tokens_to_generate,
        add_bos=config.inference.add_BOS,
    )
    samples = encode_files(
        config.data_paths,
        templates,
        encoder,
        default_taskname=only,
        any_taskname=only is not None,
        withhold_answers=True,
        columns=columns,
    )
    if len(samples) != len(labels):
        what = f"has {len(samples):,} questions now, but had {len(labels):,} when the job started"
        raise UserError(Problem("data_paths", what, "start the job again when the files are complete"))

    questions = questions_of([sample.record for sample in samples], labels, templates, only)
    provenance = evaluation_provenance(config, base)
    chosen = choose(config.metrics, questions) if any(label.answers is not None for label in labels) else Chosen({})
    ranking = Ranking.of(base, recipe, samples, questions, chosen)
    answers = Answers.of(
        base, recipe, samples, questions, chosen, nemo_compat=config.nemo_compat
    )  # reports answers that are too long before the first is generated
    run = _Run(config, base, sampling, samples, questions, chosen, ranking, answers)
    scores: dict[str, Score] = {}
    found: dict[str, list[str]] = {}
    ranked: dict[str, Ranked] = {}
    likelihoods: dict[str, Likelihoods] = {}
    with ExitStack() as kept:  # kept answers are removed when everything is written
        run.check_answers(adapter_state)
        if config.compare_with_base:
            found["base"] = run.predictions(kept, {}, "frozen base", prefix=OF_BASE)
            ranked["base"] = run.ranked(kept, {}, "choices of the base", prefix=OF_BASE)
            likelihoods["base"] = run.likelihoods(kept, {}, prefix=OF_BASE)
        load_adapter(config.adapter_model_file, base)
        if found:
            scores |= run.written("base", found["base"], prefix=OF_BASE)
        found["adapter"] = run.predictions(kept, adapter_state, "with adapter" if found else "evaluating")
        scores |= run.written("adapter", found["adapter"])
        ranked["adapter"] = run.ranked(kept, adapter_state, "choices")
        likelihoods["adapter"] = run.likelihoods(kept, adapter_state)
        measured = run.measured(found, ranked, likelihoods)
    write_evaluation_provenance(config, provenance)
    summary = report.summarize(config, scores, measured, training)
    if config.summary_path and ranks.rank() == 0:
        write_json(config.summary_path, finite_or_none(summary))
    print(report.table(summary, measured, config, num_questions=len(samples), templates=templates), flush=True)


def _values_of_rank(job: Loaded[Evaluation]) -> dict[str, str]:
    """Return what must be equal on all ranks, except the base model, which is compared when it is loaded."""
    files = ("adapter_model_file", "ground_truth_file_path", "training_summary_path")
    facts = flat_settings(job.values, (*files, "data_paths", "language_model_path"))
    facts |= {key: file_checksum(getattr(job.section, key)) for key in files}
    return facts | {f"data_paths[{i}]": file_checksum(path) for i, path in enumerate(job.section.data_paths)}


def _check_method(config: Evaluation, adapter_config: Mapping[str, object]) -> None:
    """Raise UserError when the evaluation's method is not that of its archive, since results carry its name."""
    problem = method_mismatch(config.run.method, adapter_config, config.adapter_model_file)
    if problem is not None:
        family, task = config.run.model_family or "gpt3", config.run.task_name
        fix = f"evaluation={method_name(adapter_config)}_{family}/{task}"
        raise UserError(Problem("adapter_model_file", problem, fix))


def _warn_about_training_files(data_paths: Sequence[str], recipe: AdapterPrompts) -> None:
    """Print a warning for each data file that the adapter was trained on."""
    known = {os.path.realpath(path) for path in recipe.train_ds if isinstance(path, str)}
    for path in data_paths:
        if os.path.realpath(path) in known:
            print(f"{path}: the adapter was trained on this file: its scores do not measure generalisation", flush=True)


def _templates(recipe: AdapterPrompts, path: str) -> list[TaskTemplate]:
    if not recipe.task_templates:
        what = "has no task_templates, which define the adapter's prompts"
        raise UserError(Problem(path, what, "use `nemo-launcher generate --template`"))
    return recipe.templates()


@dataclass(frozen=True, slots=True)
class _Run:
    """What all predictions of a job share."""

    config: Evaluation
    """The job's configuration."""
    base: Base
    """The base model."""
    sampling: Sampling
    """The sampling settings."""
    samples: Sequence[Sample]
    """The tokenised prompts."""
    questions: Sequence[Question]
    """Their tasks and right answers, in the same order."""
    chosen: Chosen
    """The metrics of each task; of no task without right answers."""
    ranking: Ranking
    """The questions whose answer choices are scored."""
    answers: Answers
    """The right answers whose likelihood a metric needs."""

    @property
    def labels(self) -> list[Label]:
        """The right answers."""
        return [question.label for question in self.questions]

    def check_answers(self, adapter: Adapter) -> None:
        """Raise UserError, before the first answer, if a file of answers or scores could not be started."""
        models: dict[str, Adapter] = {OF_BASE: {}} if self.config.compare_with_base else {}
        for prefix, tensors in (models | {"": adapter}).items():
            self._kept(TOKENS, prefix).check(self._key(tensors))
            for suffix, samples in ((CHOICES_SUFFIX, self.ranking.samples), (LIKELIHOODS_SUFFIX, self.answers.samples)):
                if samples:
                    self._kept(SCORES, prefix, suffix).check(self._scores_key(tensors, samples))

    def predictions(self, kept: ExitStack, adapter: Adapter, title: str, *, prefix: str = "") -> list[str]:
        """Return the text that the model generates after each prompt, without the prompt.

        kept: holds the files of answers so far, which are kept if the job is interrupted. adapter: the tensors of the
        adapter, {} for none. prefix: a prefix of the file names.
        """
        answers = kept.enter_context(self._kept(TOKENS, prefix))
        tokens = self._generate(answers, adapter, title)
        texts = [self.base.family.text(self.base.tokenizer, ids) for ids in tokens]
        if self.config.nemo_compat:  # NeMo's prompts end with the closing text of the template
            return texts
        return [question.template.scored_answer(text) for question, text in zip(self.questions, texts, strict=True)]

    def written(self, name: str, predictions: Sequence[str], *, prefix: str = "") -> dict[str, Score]:
        """Write one set of predictions, "base" or "adapter", on rank 0; return {name: score}, {} without a score."""
        score = score_of(predictions, self.labels)
        text, tokenizer, joint = self.base.family.text, self.base.tokenizer, self.base.family.joint

        def write() -> dict[str, object]:
            prompts = (text(tokenizer, sample.input_ids) for sample in self.samples)
            path = self.config.pred_file_path
            write_predictions(path, prompts, predictions, self.labels, score, joint=joint, prefix=prefix)
            return {}

        ranks.decide_on_rank_zero(write)  # other ranks keep their answers until this is done
        return {} if score is None else {name: score}

    def ranked(self, kept: ExitStack, adapter: Adapter, title: str, *, prefix: str = "") -> Ranked:
        """Return the scores that the model gives the answer choices, by the index of the question."""
        if not self.ranking.samples:
            return {}
        scores = kept.enter_context(self._kept(SCORES, prefix, CHOICES_SUFFIX))
        key = self._scores_key(adapter, self.ranking.samples)
        return self.ranking.scores(self.base, scores, key, batch_size=self.config.inference.batch_size, title=title)

    def likelihoods(self, kept: ExitStack, adapter: Adapter, *, prefix: str = "") -> Likelihoods:
        """Return the likelihood of right answers, by the index of the question."""
        if not self.answers.samples:
            return {}
        scores = kept.enter_context(self._kept(SCORES, prefix, LIKELIHOODS_SUFFIX))
        key = self._scores_key(adapter, self.answers.samples)
        return self.answers.likelihoods(self.base, batch_size=self.config.inference.batch_size, kept=scores, key=key)

    def measured(
        self,
        predictions: Mapping[str, Sequence[str]],
        ranked: Mapping[str, Ranked],
        likelihoods: Mapping[str, Likelihoods],
    ) -> Json:
        """Score the predictions of each model, and write scores and figures on rank 0; return the figures, {} if none.

        predictions: those of "base", if it is compared, and of "adapter". ranked: the scores of their answer choices.
        likelihoods: those of the right answers.
        """
        path = self.config.pred_file_path

        def measure() -> Json:
            if not self.chosen.by_task:
                remove_scores(path)
                return {}
            answered = {
                name: with_answers(self.questions, of_model, ranked[name], likelihoods[name])
                for name, of_model in predictions.items()
            }
            found = figures(self.chosen, self.questions, answered)
            like = [*self.config.data_paths, *filter(None, [self.config.ground_truth_file_path])]
            write_scores(path, self.chosen, self.questions, answered, found, like=like)
            return found

        return ranks.decide_on_rank_zero(measure)

    def _kept(self, kind: Kind[Number], prefix: str, suffix: str = "") -> ReplicaAnswers[Number]:
        path = Path(self.config.pred_file_path)
        return ReplicaAnswers(path.with_name(prefix + path.name + suffix), kind)

    def _key(self, adapter: Adapter) -> str:
        return answers_key(self.base, adapter, self.samples, self.sampling)

    def _scores_key(self, adapter: Adapter, samples: Sequence[Sample]) -> str:
        return scores_key(self.base, adapter, samples, self.config.inference.batch_size)

    def _generate(self, answers: ReplicaAnswers[int], adapter: Adapter, title: str) -> list[list[int]]:
        samples = self.samples
        known = answers.begin(self._key(adapter))
        known = {place: ids for place, ids in known.items() if place < len(samples)}
        with Progress(title, len(samples), done=len(known), unit="question") as progress:
            return generate(
                self.base,
                samples,
                self.sampling,
                batch_size=self.config.inference.batch_size,
                report=progress.advance,
                known=known,
                keep=answers.keep,
            )
