# SPDX-License-Identifier: Apache-2.0
"""A configuration folder with the keys and values of NVIDIA's launcher, releases 23.05 to 24.05."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

FAMILIES = {"gpt3": ("gpt", "gpt3_5b"), "t5": ("t5", "t5_220m"), "llama": ("llama", "llama_7b")}
"""Family -> the word in file names, and model_train_name."""
LEARNING = [(stage, family) for stage in ("adapter_learning", "ia3_learning") for family in FAMILIES]
EVALUATIONS = [(stage.partition("_")[0], family) for stage, family in LEARNING if family != "llama"]
FOLDERS = "${base_results_dir}/${.model_train_name}"
DATA = "${data_dir}/prompt_data/v1.1/squad_"


def learning(stage: str, family: str, *, first: bool = False) -> dict[str, Any]:
    """Return the content of conf/STAGE/FAMILY/squad.yaml. first: as in release 23.05."""
    word, model = FAMILIES[family]
    method = stage.partition("_")[0]
    own = f"megatron_{word}_{method}"
    of_stage = f"${{{stage}."
    run = {
        "name": "${.task_name}_${.model_train_name}",
        "time_limit": "04:00:00",
        "dependency": "singleton",
        "convert_name": "convert_nemo",
        "model_train_name": model,
        "task_name": "squad",
        "results_dir": f"{FOLDERS}/{stage}_${{.task_name}}",
    }
    folder = f"${{base_results_dir}}/{of_stage}run.model_train_name}}/{of_stage}run.convert_name}}"
    base = f"{folder}/megatron_{word}.nemo"
    if not first:
        run["convert_dir"] = folder
        base = f"{of_stage}run.convert_dir}}/results/megatron_{word}.nemo"
    trainer = {
        "devices": 8,
        "num_nodes": 1,
        "accelerator": "gpu",
        "precision": "bf16",
        "logger": False,
        "enable_checkpointing": False,
        "replace_sampler_ddp" if first else "use_distributed_sampler": False,
        "max_epochs": 4,
        "max_steps": -1,
        "log_every_n_steps": 10,
        "val_check_interval": 0.1,
        "accumulate_grad_batches": 1,
        "gradient_clip_val": 1.0,
        "resume_from_checkpoint": None,
    }
    manager = {
        "explicit_log_dir": f"{of_stage}run.results_dir}}/results",
        "exp_dir": None,
        "name": own,
        "create_wandb_logger": False,
        "wandb_logger_kwargs": {"project": f"nemo_{family}_{method}", "name": f"{of_stage}run.name}}"},
        "resume_if_exists": True,
        "resume_ignore_no_checkpoint": True,
        "create_checkpoint_callback": True,
        "checkpoint_callback_params": {
            "monitor": "val_loss",
            "save_top_k": 5,
            "mode": "min",
            "save_nemo_on_train_end": False,
            "filename": f"megatron_gpt_{method}_learn--{{val_loss:.3f}}-{{step}}",
            "model_parallel_size": f"{of_stage}model.model_parallel_size}}",
            "save_best_model": True,
        },
    }
    section = {"run": run, "trainer": trainer, "exp_manager": manager}
    return section | {"model": _model(stage, family, f"{of_stage}run.results_dir}}/results/{own}.nemo", base)}


def _model(stage: str, family: str, adapter: str, base: str) -> dict[str, Any]:
    t5 = family == "t5"
    template = {
        "taskname": "squad",
        "prompt_template": "context: {context} question: {question} answer: {answer}",
        "total_virtual_tokens": 0,
        "virtual_token_splits": [],
        "truncate_field": None,
        "answer_only_loss": True,
        "answer_field": "answer",
    }
    model = {
        "seed": 1234,
        "nemo_path": adapter,
        "virtual_prompt_style": "no-prompts",
        **({"pipeline_model_parallel_split_rank": "${divide_floor:${.pipeline_model_parallel_size}, 2}"} if t5 else {}),
        **({} if t5 else {"encoder_seq_length": 2048}),
        "gradient_as_bucket_view": False,
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "model_parallel_size": "${multiply:${.tensor_model_parallel_size}, ${.pipeline_model_parallel_size}}",
        "global_batch_size": 128 if t5 else 64,
        "micro_batch_size": 16 if t5 else 8,
        "restore_path": None,
        "language_model_path": base,
        "existing_tasks": [],
        "new_tasks": ["squad"],
        "task_templates": [template],
        "data": {
            "train_ds": [f"{DATA}train.jsonl"],
            "validation_ds": [f"{DATA}val.jsonl"],
            "add_eos": True,
            "shuffle": True,
            "num_workers": 4,
            "pin_memory": True,
        },
        "optim": {
            "name": "fused_adam",
            "lr": 1e-4,
            "weight_decay": 0.01,
            "betas": [0.9, 0.98],
            "sched": {
                "name": "CosineAnnealing",
                "warmup_steps": 50,
                "constant_steps": 0,
                "min_lr": 0.0,
                "monitor": "val_loss",
                "reduce_on_plateau": False,
            },
        },
    }
    if stage == "adapter_learning":
        model["adapter_tuning"] = {
            "type": "parallel_adapter",
            "adapter_dim": 16,
            "adapter_dropout": 0.1,
            "norm_position": "pre",
            "column_init_method": "xavier",
            "row_init_method": "zero",
            "norm_type": "mixedfusedlayernorm",
        }
    return model


def evaluation(method: str, family: str) -> dict[str, Any]:
    """Return the content of conf/evaluation/METHOD_FAMILY/squad.yaml."""
    word, model = FAMILIES[family]
    trained = f"{FOLDERS}/{method}_learning_squad"
    section = {
        "run": {
            "name": "eval_${.task_name}_${.model_train_name}",
            "time_limit": "04:00:00",
            "dependency": "singleton",
            "model_train_name": model,
            "task_name": "squad",
            f"{method}_learning_dir": trained,
            "results_dir": f"{FOLDERS}/{method}_learning_${{.task_name}}_eval",
        },
        "trainer": {
            "devices": "${divide_ceil:${evaluation.model_parallel_size}, ${.num_nodes}}",
            "num_nodes": "${divide_ceil:${evaluation.model_parallel_size}, 8}",
            "accelerator": "gpu",
            "precision": "bf16",
            "logger": False,
            "enable_checkpointing": False,
            "use_distributed_sampler": False,
            "log_every_n_steps": 10,
        },
        "inference": {
            "greedy": True,
            "top_k": 0,
            "top_p": 0.9,
            "temperature": 1.0,
            "add_BOS": True,
            "tokens_to_generate": 30,
            "all_probs": False,
            "repetition_penalty": 1.2,
            "min_tokens_to_generate": 0,
            "compute_logprob": False,
        },
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "pipeline_model_parallel_split_rank": "${divide_floor:${.pipeline_model_parallel_size}, 2}",
        "model_parallel_size": "${multiply:${.tensor_model_parallel_size}, ${.pipeline_model_parallel_size}}",
        "adapter_model_file": f"${{evaluation.run.{method}_learning_dir}}/results/megatron_{word}_{method}.nemo",
        "pred_file_path": "${evaluation.run.results_dir}/results/predictions.txt",
        "ground_truth_file_path": f"{DATA}test_ground_truth.jsonl",
    }
    base = f"${{base_results_dir}}/${{evaluation.run.model_train_name}}/convert_nemo/results/megatron_{word}.nemo"
    if family != "t5":
        return section | {"gpt_model_file": base, "data_paths": [f"{DATA}test.jsonl"], "split_string": "answer:"}
    data = {"test_ds": [f"{DATA}test.jsonl"], "num_workers": 1, "global_batch_size": 4, "micro_batch_size": 4}
    return section | {"language_model_path": base, "data": data, "split_string": "answer :"}


def write_group(folder: Path, group: str, choice: str, content: object) -> None:
    """Write FOLDER/GROUP/CHOICE.yaml."""
    path = folder / group / f"{choice}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def write_files(folder: Path, name: str = "squad", *, first: bool = False) -> Path:
    """Write the files of all learning stages and evaluations, each under `name`."""
    for stage, family in LEARNING:
        write_group(folder, stage, f"{family}/{name}", learning(stage, family, first=first))
    for method, family in EVALUATIONS:
        write_group(folder, "evaluation", f"{method}_{family}/{name}", evaluation(method, family))
    return folder


OTHER_STAGES = ("training/gpt3/5b", "conversion/gpt3/convert_gpt3", "export/gpt3/export_gpt3")
STUB = {"run": {"name": "${.model}_run", "model": "gpt3_5b", "results_dir": "${base_results_dir}/${.model}"}}
"""A stage of NVIDIA's that does not exist here."""


def main_file() -> dict[str, Any]:
    """Return the content of conf/config.yaml."""
    empty = ("peft", "prompt_learning", "adapter_learning", "ia3_learning")
    chosen = [{group: choice} for group, _, choice in (path.partition("/") for path in OTHER_STAGES)]
    own = [{"cluster": "bcm"}, {"evaluation": "gpt3/evaluate_all"}, *chosen, *({group: None} for group in empty)]
    groups = [group for entry in own[1:] for group in entry]
    names = ("NCCL_TOPO_FILE", "NCCL_IB_TIMEOUT", "NCCL_DEBUG", "NCCL_PROTO")
    numa = {"enable": True, "mode": "unique_contiguous", "scope": "node", "cores": "all_logical", "balanced": True}
    return {
        "defaults": ["_self_", *own, {"override hydra/job_logging": "stdout"}],
        "hydra": {"run": {"dir": "."}, "output_subdir": None},
        "debug": False,
        "stages": ["conversion"],
        "cluster_type": "bcm",
        "launcher_scripts_path": "???",
        "data_dir": "${launcher_scripts_path}/data",
        "base_results_dir": "${launcher_scripts_path}/results",
        "container_mounts": [None],
        "container": "nvcr.io/nvidia/nemo:24.03.01.framework",
        "wandb_api_key_file": None,
        "wandb_api_bcp_secret_key": None,
        "bcp_no_redirect": True,
        "env_vars": dict.fromkeys(names) | {"TRANSFORMERS_OFFLINE": 0, "NVTE_FUSED_ATTN": 0},
        "numa_mapping": numa | {"min_cores": 1, "max_cores": 8},
        **{f"{group}_config": f"${{hydra:runtime.choices.{group}}}" for group in groups},
    }


def write_tree(folder: Path, *, first: bool = False) -> Path:
    """Write a whole conf/ folder of NVIDIA's launcher."""
    write_files(folder, first=first)
    write_group(folder, ".", "config", main_file())
    bcm = {"partition": None, "account": None, "exclusive": True, "gpus_per_task": None, "gpus_per_node": 8, "mem": 0}
    bcm |= {"wait_all_nodes": 1, "job_name_prefix": "nemo-megatron-", "srun_args": ["--no-container-mount-home"]}
    write_group(folder, "cluster", "bcm", bcm)
    for path in (*OTHER_STAGES, "evaluation/gpt3/evaluate_all"):
        group, _, choice = path.partition("/")
        write_group(folder, group, choice, STUB)
    return folder
