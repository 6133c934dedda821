"""The evaluation job: predictions, exact match and F1 of an adapter and, on request, of the frozen base."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nemo_launcher import ranks
from nemo_launcher.adapters.archive import check_base, load_adapter, read_adapter
from nemo_launcher.adapters.peft import is_peft
from nemo_launcher.checkpoint.base import Base, load_base
from nemo_launcher.data.jsonl import read_records
from nemo_launcher.data.prompts import encode_files
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.evaluation import report
from nemo_launcher.evaluation.generation import generate
from nemo_launcher.evaluation.sampling import Sampling
from nemo_launcher.evaluation.squad_metrics import SquadScore
from nemo_launcher.evaluation.squad_metrics import evaluate as squad_score
from nemo_launcher.files import finite_or_none, write_json, write_text
from nemo_launcher.models import parallel
from nemo_launcher.models.sizes import ParallelSizes
from nemo_launcher.precision import dtype_of
from nemo_launcher.progress import Progress


def evaluate(config: DictConfig) -> None:
    """Run one evaluation job from its resolved configuration."""
    parallel.check_world(config.trainer.devices, config.trainer.num_nodes)
    adapter_config, adapter_state = read_adapter(config.adapter_model_file)
    truths = _ground_truth(config.ground_truth_file_path)
    base_path = config.language_model_path
    print(f"loading the base model {base_path}", flush=True)
    dtype = dtype_of(config.trainer.precision, "trainer.precision")
    base = load_base(
        base_path,
        dtype=dtype,
        sizes=ParallelSizes.from_section(config),
        family=config.run.get("model_family"),
    )
    check_base(adapter_config, adapter_state, base, config.adapter_model_file)
    nemo_compat = bool(config.get("nemo_compat", False))
    section = OmegaConf.to_container(config.inference, resolve=True)
    inference = base.family.inference(section, adapter_config, nemo_compat)
    encoder = base.family.prompt_encoder(
        base.tokenizer, base.shape, adapter_config.get("data") or {}, nemo_compat=nemo_compat, inference=inference
    )
    templates = _templates(adapter_config, config.adapter_model_file)
    only = templates[0].taskname if is_peft(adapter_config) else None  # NeMo's peft data names no task
    samples = encode_files(config.data_paths, templates, encoder, default_taskname=only, any_taskname=only is not None)
    if len(samples) != len(truths):
        what = f"{len(truths)} answers for {len(samples)} questions in data_paths"
        raise UserError(Problem(str(config.ground_truth_file_path), what, "name the files of the same questions"))

    scores: dict[str, SquadScore] = {}
    of_base = _predict(inference, base, samples, "frozen base") if config.compare_with_base else None
    load_adapter(config.adapter_model_file, base)
    if of_base is not None:
        scores["base"] = _write(config, samples, truths, of_base, base, name="base_")
    predictions = _predict(inference, base, samples, "with adapter" if config.compare_with_base else "evaluating")
    scores["adapter"] = _write(config, samples, truths, predictions, base)
    summary = report.summarize(config, scores)
    if config.summary_path and ranks.rank() == 0:
        write_json(config.summary_path, finite_or_none(summary))
    print(report.table(summary, scores, config, base_path), flush=True)


def _templates(adapter_config: Mapping[str, Any], path: str) -> list[TaskTemplate]:
    entries = adapter_config.get("task_templates")
    if not entries:
        what = "holds no task_templates, which say how the adapter's prompts are made"
        raise UserError(Problem(path, what, "use `nemo-launcher generate --template`"))
    return [TaskTemplate.from_config(entry) for entry in entries]


def _ground_truth(path: str) -> list[dict[str, Any]]:
    """Return the records of the ground-truth file: `answer` is a list of right answers."""
    records, problems = [], []
    for line, record in read_records(path):
        answers = record.get("answer")
        if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
            problems.append(Problem(f"{path}:{line}", "'answer' is not a list of right answers"))
        records.append(record)
    if problems:
        raise UserError(problems[:10])
    return records


def _predict(inference: Mapping[str, Any], base: Base, samples: Sequence[Any], title: str) -> list[str]:
    names = [field.name for field in fields(Sampling) if field.name in inference]
    sampling = Sampling(**{name: inference[name] for name in names})
    with Progress(title, len(samples), unit="question") as progress:
        tokens = generate(base, samples, sampling, batch_size=inference["batch_size"], report=progress.advance)
    return [base.family.text(base.tokenizer, ids) for ids in tokens]


def _write(
    config: DictConfig,
    samples: Sequence[Any],
    truths: Sequence[dict[str, Any]],
    predictions: Sequence[str],
    base: Base,
    name: str = "",
) -> SquadScore:
    """Let rank 0 write the three files of one set of predictions; return their score."""
    path = Path(config.pred_file_path)
    path = path.with_name(name + path.name)
    lines = [
        base.family.joint.join((base.family.text(base.tokenizer, sample.input_ids), prediction)).replace("\n", " ")
        for sample, prediction in zip(samples, predictions, strict=True)
    ]
    answers = [line.split(config.split_string)[-1].strip() for line in lines]
    score = squad_score(answers, [truth["answer"] for truth in truths])
    if ranks.rank() > 0:
        return score
    records = [
        {"id": truth.get("id"), "question": truth.get("question"), "answers": truth["answer"], "prediction": answer}
        for truth, answer in zip(truths, answers, strict=True)
    ]
    write_text(path, "".join(f"{line}\n" for line in lines))
    write_text(
        path.with_name(f"{name}predictions.jsonl"),
        "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records),
    )
    # percentages, as the documented metric writes them
    metric = {"exact_match": 100 * score.exact_match, "f1": 100 * score.f1, "total": score.total}
    write_json(path.with_name(f"{name}squad_metric.json"), metric)
    return score
