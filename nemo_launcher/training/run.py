# SPDX-License-Identifier: Apache-2.0
"""The training job: reads `<job>_hydra.yaml`, writes the adapter `.nemo` and training_summary.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nemo_launcher.adapters.archive import new_adapters
from nemo_launcher.config.automatic import RATE, automatic_keys, finds_rate
from nemo_launcher.config.choice_loss import uses_choices
from nemo_launcher.config.load import Loaded, load_checked
from nemo_launcher.config.loggers import logger_problems
from nemo_launcher.config.near_duplicates import near_duplicate_problems
from nemo_launcher.config.sections import Learning
from nemo_launcher.config.sections.learning import Ia3Model
from nemo_launcher.config.training_length import length_problems
from nemo_launcher.config.training_options import option_problems
from nemo_launcher.data.assumed import with_assumed
from nemo_launcher.data.cache import cache_folders, cached_samples
from nemo_launcher.data.common_samples import common_samples
from nemo_launcher.data.prompt_encoder import PromptSettings
from nemo_launcher.data.record_forms import no_templates, told
from nemo_launcher.data.records import count_records, path_problem
from nemo_launcher.data.samples import Sample
from nemo_launcher.data.tasks import check_tasks, has_records
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.evaluation.monitored import monitor_problems
from nemo_launcher.evaluation.validation import ValidationMetrics
from nemo_launcher.families.base import Base, load_base
from nemo_launcher.files.atomic import finite_or_none, write_json
from nemo_launcher.megatron import parallel
from nemo_launcher.megatron.compilation import check_torch_compile
from nemo_launcher.megatron.fused_check import uses_fused
from nemo_launcher.megatron.sizes import ParallelSizes
from nemo_launcher.runtime import ranks
from nemo_launcher.runtime.agreement import check_same
from nemo_launcher.runtime.precision import allow_tf32, computed_dtype
from nemo_launcher.runtime.progress_file import SUMMARY_NAME
from nemo_launcher.runtime.startup import quick_imports
from nemo_launcher.training.automatic import described, with_kept_values, with_numbers
from nemo_launcher.training.hidden_states import check_can_store
from nemo_launcher.training.provenance import write_training_provenance
from nemo_launcher.training.record import record_of_base, record_of_job, values_of_rank
from nemo_launcher.training.resume import check_base, find_start


def train(job: Loaded[Learning]) -> None:
    """Run an adapter_learning or ia3_learning job from its resolved configuration.

    Raises UserError for mistakes in settings and files, before the base is loaded where possible.
    """
    job = _with_templates(job)
    config = job.section
    problems = option_problems(job) + logger_problems(config.exp_manager) + monitor_problems(config)
    problems += near_duplicate_problems(config.model.data)
    if problems:
        raise UserError(problems)
    parallel.check_world(config.trainer.devices, config.trainer.num_nodes)
    dtype = computed_dtype(config.trainer.precision, "trainer.precision")
    allow_tf32(config.trainer.tf32)
    if config.model.torch_compile:
        check_torch_compile(parallel.local_device(), "model.torch_compile")
    if config.model.fused_kernels == "liger":  # refused before data and base are read
        uses_fused("liger", "model.fused_kernels", parallel.local_device(), dtype)
    templates = _checked_data(job)
    finds = [RATE] if finds_rate(job.values) else []
    said = list(dict.fromkeys([*(config.run.automatic or ()), *automatic_keys(job.values), *finds]))
    job = with_numbers(job)
    record = record_of_job(job)
    check_same(lambda: values_of_rank(record))
    start = find_start(job, record, said)
    if start.finished:
        print(start.finished, flush=True)
        return
    if said:
        job = with_kept_values(job, start.kept, record)
        config = job.section
        for line in filter(None, [described(job, said, kept=bool(start.kept))]):
            print(line, flush=True)
    print(f"loading the base model {config.model.language_model_path}", flush=True)
    base = load_base(
        config.model.language_model_path,
        dtype=dtype,
        sizes=ParallelSizes.of(config.model, sequence_parallel=config.model.splits_tokens),
        family=config.run.model_family,
    )
    record["base"] = record_of_base(base)
    check_base(start, record["base"], job)
    # a checkpoint holds the adapter weights, which restore_path only initialized
    adapters = new_adapters(base, job.values["model"] | ({} if start.path is None else {"restore_path": None}))
    if config.model.data.cache_hidden:
        check_can_store(base, adapters.method, nemo_compat=config.model.nemo_compat)
    train_samples = _samples(config, "train_ds", templates, base, shuffled=config.model.data.shuffle)
    validation_samples = _samples(config, "validation_ds", templates, base, shuffled=False)
    print(f"{len(train_samples)} training and {len(validation_samples)} validation samples", flush=True)
    if ranks.rank() == 0:
        for line in common_samples(train_samples, validation_samples, config.model.data.near_duplicates):
            print(line, flush=True)
    metrics = ValidationMetrics.of(base, job, templates)
    if metrics is not None:
        print(metrics, flush=True)
    write_training_provenance(config, record, train_samples, validation_samples)

    # These imports take seconds, so mistakes in the files above are reported before them.
    with quick_imports():
        from nemo_launcher.training.found_rate import with_found_rate
        from nemo_launcher.training.nemo.fit import fit

    if finds_rate(job.values):
        job = with_found_rate(job, record, base, adapters, train_samples, validation_samples)
    summary = fit(job, start, base, adapters, train_samples, validation_samples, record, metrics)
    if ranks.rank() == 0:
        write_json(Path(config.exp_manager.explicit_log_dir) / SUMMARY_NAME, finite_or_none(summary))
    print(f"adapter written: {config.model.nemo_path}", flush=True)


def _with_templates(job: Loaded[Learning]) -> Loaded[Learning]:
    """Return a job with templates for records that need none, unless the launcher has: it may not have seen them."""
    found = with_assumed(job.values, job.section.model)
    if found is None:
        return job
    values, forms = found
    print(told(forms), flush=True)
    return load_checked(values, type(job.section))


def _checked_data(job: Loaded[Learning]) -> list[TaskTemplate]:
    """Return the templates. Raises UserError if a data file is missing, unreadable or has nothing to train on."""
    model, data = job.section.model, job.section.model.data
    problems = []
    for key, paths in (("train_ds", data.train_ds), ("validation_ds", data.validation_ds)):
        for path in paths:
            problem = path_problem(path)
            if problem is not None:
                problems.append(Problem(f"model.data.{key}: {problem.where}", problem.what, problem.fix))
    if not problems:
        records = sum(count_records(path) for path in data.train_ds)
        problems = length_problems(job.section, records) if records else []
    if problems:
        raise UserError(problems)
    templates = _templates(model)
    for path in dict.fromkeys([*data.train_ds, *data.validation_ds]):
        problems += check_tasks(path, templates, for_train=True, nemo_compat=model.nemo_compat, columns=data.fields)
    if problems:
        raise UserError(problems)
    size = model.global_batch_size
    if not has_records(data.train_ds, size):
        print(f"train_ds has fewer records than a global batch ({size}): each epoch is one smaller step", flush=True)
    return templates


def _templates(model: Ia3Model) -> list[TaskTemplate]:
    """Return the task templates. Raises UserError if a task has none, or if there are none at all."""
    if not model.task_templates:
        raise UserError(no_templates("model.task_templates"))
    templates = [TaskTemplate.from_config(vars(template)) for template in model.task_templates]
    unknown = {*(model.existing_tasks or ()), *model.new_tasks} - {template.taskname for template in templates}
    if unknown:
        raise UserError(Problem("model.task_templates", f"has no template for the task {sorted(unknown)[0]!r}"))
    return templates


def _samples(
    config: Learning, key: str, templates: Sequence[TaskTemplate], base: Base, *, shuffled: bool
) -> Sequence[Sample]:
    model, data = config.model, config.model.data
    paths: list[str] = getattr(data, key)
    encoder = base.family.prompt_encoder(
        base.tokenizer,
        base.shape,
        PromptSettings.of_training(data),
        encoder_seq_length=model.encoder_seq_length,
        nemo_compat=model.nemo_compat,
        with_choices=uses_choices(model),
    )
    return cached_samples(
        paths,
        templates,
        encoder,
        max_dropped_share=data.max_dropped_share,
        folders=cache_folders(data.cache_dir, paths[0], config.exp_manager.explicit_log_dir),
        with_prefixes=shuffled and base.family.shares_prefixes and data.share_prefix,
        columns=data.fields,
    )
