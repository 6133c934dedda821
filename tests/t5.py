# SPDX-License-Identifier: Apache-2.0
"""T5 for tests: results of NVIDIA's own code (shared/oracle), and a tiny random model with its jobs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import Unigram
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from nemo_launcher.adapters.injection import AdapterSet
from nemo_launcher.data.batching import Collate
from nemo_launcher.data.layout import Layout
from nemo_launcher.families.base import Base, load_base
from nemo_launcher.families.t5.packing import pack
from nemo_launcher.families.t5.samples import T5Sample
from nemo_launcher.requirements import is_transformers_5
from nemo_launcher.training.loss import TrainingLoss
from nemo_launcher.training.step import forward_backward
from tests import oracle
from tests.made import converted
from tests.shared import shared_path
from tests.versions import hf_config

torch.set_num_threads(1)  # the models are too small for more threads

KINDS = tuple(oracle.KINDS)
CASES = (*(f"{kind}_t5{variant}" for kind in KINDS for variant in ("", "_fused", "_hft5")), "adapter_post_t5")
BOTTLENECK = {"type": "parallel_adapter", "adapter_dim": 4, "adapter_dropout": 0.0, "row_init_method": "xavier"}


# --- NVIDIA's numbers -------------------------------------------------------------------------------------------


def load_case(name: str) -> dict[str, Any]:
    """Return the content of `shared/oracle/<name>.pt`; skip the test if it does not exist."""
    content: dict[str, Any] = torch.load(shared_path(f"oracle/{name}.pt"), weights_only=True)
    return content


def frozen_base(name: str) -> Base:
    """Return the frozen base of the case `name`."""
    return load_base(shared_path(f"oracle/base_t5{name.partition('_t5')[2]}.nemo"))


def model_config(case: dict[str, Any]) -> dict[str, Any]:
    """Return NeMo's `model` section."""
    config = OmegaConf.to_container(OmegaConf.create(case["adapter_model_config_yaml"]))
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def adapted(name: str) -> tuple[dict[str, Any], Base, AdapterSet]:
    """Return a case, its base with the case's adapters, and the adapters."""
    case, base = load_case(name), frozen_base(name)
    adapters = AdapterSet(base.model, base.shape, model_config(case))
    adapters.load_state_dict(case["adapter_state_dict"], name)
    return case, base, adapters


def batch_samples(batch: Mapping[str, Tensor]) -> list[T5Sample]:
    """Return the samples of one of NeMo's padded batches."""
    samples = []
    for row in range(batch["labels"].size(0)):
        length = int(batch["loss_mask"][row].sum())
        decoder_ids = [int(batch["dec_input"][row, 0]), *batch["labels"][row, :length].tolist()]
        samples.append(T5Sample(batch["enc_input"][row][batch["enc_mask"][row].bool()].tolist(), decoder_ids, {}, ""))
    return samples


def examples(case: dict[str, Any]) -> list[T5Sample]:
    """Return the tokenized examples; the first four are the rows of the case's batch."""
    return [T5Sample(ids, [dec_input[0], *labels], {}, "") for _, ids, dec_input, labels in case["examples"]]


def gradients(base: Base) -> dict[str, Tensor]:
    """Return the adapters' gradients under NeMo's parameter names."""
    found = {}
    for name, parameter in base.model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            found[nemo_name(name)] = parameter.grad.clone()
            parameter.grad = None
    return found


def nemo_name(name: str) -> str:
    """Return the name of an adapter's parameter in NeMo's model."""
    stack, _, rest = name.partition(".")
    return (
        f"frozen_model.enc_dec_model.enc_dec_model.{stack}.model.{rest.replace('cross_attention', 'inter_attention')}"
    )


# --- a tiny model -----------------------------------------------------------------------------------------------


def save_t5(folder: Path, *, kind: str = "T5", seed: int = 0, tied: bool = False, **changes: Any) -> Path:
    """Save a random T5, MT5 or UMT5 with a tokenizer of single characters; `changes`: arguments of its configuration.

    tied: the head is the token embedding and the decoder's output is scaled, as in the original T5.
    """
    import transformers

    letters = "abcdefghijklmnopqrstuvwxyz:"
    pieces = [*(f"\u2581{letter}" for letter in letters), *letters]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    sentinels = [(f"<extra_id_{number}>", 0.0) for number in reversed(range(10))]
    vocabulary = [*special, *((piece, -3.0) for piece in pieces), *sentinels]
    if is_transformers_5():
        tokenizer = transformers.T5Tokenizer(vocab=vocabulary, extra_ids=10)
    else:
        backend = Tokenizer(Unigram(vocabulary, unk_id=2, byte_fallback=False))
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
        backend.post_processor = TemplateProcessing(
            single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
        )
        backend.decoder = decoders.Metaspace()
        tokenizer = transformers.T5TokenizerFast(tokenizer_object=backend, extra_ids=10)
    tokenizer.save_pretrained(folder)
    options: dict[str, Any] = {"vocab_size": 72, "d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 2}
    options |= {"num_decoder_layers": 3, "num_heads": 3, "feed_forward_proj": "gated-gelu"}
    options |= {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 20}
    config = hf_config(kind, **(options | ({} if tied else {"tie_word_embeddings": False}) | changes))
    torch.manual_seed(seed)
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    model.save_pretrained(folder)
    if kind != "T5":  # transformers 5 writes True, whatever it was
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": tied}))
    return folder


def tiny_base(path: Path, **changes: Any) -> Path:
    """Write a tiny random base checkpoint to `path`."""
    return converted(path, save_t5, **changes)


def random_samples(count: int, seed: int = 0, start: int = 0, vocabulary: int = 58) -> list[T5Sample]:
    """Return samples of random tokens and lengths; `start`: the decoder's first token."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (1,), generator=generator))
        return torch.randint(4, vocabulary, (length,), generator=generator).tolist()

    return [T5Sample(draw(3, 30), [start, *draw(2, 9)], {}, "") for _ in range(count)]


def logits_of(base: Base, samples: Sequence[T5Sample]) -> Tensor:
    """Return the logits of every label, [labels, vocabulary]."""
    batch = pack(samples).to(base.device)
    with torch.no_grad():
        logits: Tensor = base.model.logits_of(base.model(batch.encoder_row, batch.decoder_row))
    return logits.cpu()


def loss_and_gradients(
    base: Base, samples: Sequence[T5Sample], *, micro_batch_size: int = 100, nemo_compat: bool = False
) -> tuple[float, dict[str, Tensor]]:
    """Return the loss of a global batch and the adapters' gradients under NeMo's names."""
    batch = Collate(Layout.one_after_the_other(micro_batch_size), share_prefix=False, pack=pack)(samples).to(
        base.device
    )
    loss = forward_backward(base.model, batch, backward=True, loss=TrainingLoss(nemo_compat=nemo_compat))
    return float(loss), gradients(base)


# --- jobs -------------------------------------------------------------------------------------------------------

TEMPLATE = {
    "taskname": "squad",
    "prompt_template": "context : {context} question : {question} answer : {answer}",
    "total_virtual_tokens": 0,
    "virtual_token_splits": [],
    "truncate_field": None,
    "answer_only_loss": True,
    "answer_field": "answer",
}


def write_data(folder: Path) -> Path:
    """Write tiny train, validation, test and ground-truth files."""
    rows = []
    for number in range(12):
        name, place = ("anna", "bob", "carl")[number % 3], ("inn", "hut", "old mill", "den")[number % 4]
        row = {"taskname": "squad", "context": f"{name} is in the {place}", "question": f"where is {name}"}
        rows.append(row | {"answer": place})
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "train": rows[:8],
        "val": rows[8:],
        "test": [{key: row[key] for key in row if key != "answer"} for row in rows[8:]],
        "truth": [row | {"answer": [row["answer"]]} for row in rows[8:]],
    }
    for name, content in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    return folder


def training_config(base: Path, data: Path, results: Path, changes: Mapping[str, Any] | None = None) -> Any:
    """Return a training job's section as written by the launcher; `changes`: dotted keys and their values."""
    schedule = {"name": "CosineAnnealing", "warmup_steps": 2, "constant_steps": 0, "min_lr": 0.0}
    config = OmegaConf.create(
        {
            "run": {"name": "squad_t5", "results_dir": str(results), "task_name": "squad", "model_family": "t5"},
            "trainer": {
                "devices": 1,
                "num_nodes": 1,
                "accelerator": "cpu",
                "precision": 32,
                "logger": False,
                "enable_checkpointing": False,
                "use_distributed_sampler": False,
                "max_epochs": 3,
                "max_steps": -1,
                "log_every_n_steps": 1,
                "val_check_interval": 1.0,
                "gradient_clip_val": 1.0,
                "num_sanity_val_steps": 0,
            },
            "exp_manager": {
                "explicit_log_dir": str(results / "results"),
                "name": "megatron_t5_adapter",
                "resume_if_exists": True,
                "resume_ignore_no_checkpoint": True,
                "create_checkpoint_callback": True,
                "checkpoint_callback_params": {"monitor": "val_loss", "mode": "min", "save_best_model": True},
            },
            "model": {
                "seed": 1234,
                "nemo_path": str(results / "adapter.nemo"),
                "tensor_model_parallel_size": 1,
                "pipeline_model_parallel_size": 1,
                "global_batch_size": 4,
                "micro_batch_size": 2,
                "restore_path": None,
                "language_model_path": str(base),
                "existing_tasks": [],
                "new_tasks": ["squad"],
                "task_templates": [TEMPLATE],
                "adapter_tuning": dict(BOTTLENECK),
                "nemo_compat": False,
                "data": {
                    "train_ds": [str(data / "train.jsonl")],
                    "validation_ds": [str(data / "val.jsonl")],
                    "add_eos": True,
                    "decoder_starts_with_pad": True,
                    "num_workers": 0,
                },
                "optim": {
                    "name": "fused_adam",
                    "lr": 0.02,
                    "weight_decay": 0.01,
                    "betas": [0.9, 0.98],
                    "sched": schedule,
                },
            },
        }
    )
    for key, value in (changes or {}).items():
        OmegaConf.update(config, key, value, force_add=True)
    return config


def evaluation_config(base: Path, adapter: Path, data: Path, results: Path, **changes: Any) -> Any:
    """Return an evaluation job's section as written by the launcher; `changes` replace top-level keys."""
    inference = {"greedy": True, "top_k": 0, "top_p": 0.9, "temperature": 1.0, "add_BOS": True}
    inference |= {"tokens_to_generate": 8, "min_tokens_to_generate": 0, "repetition_penalty": 1.2, "batch_size": 3}
    return OmegaConf.create(
        {
            "run": {"name": "eval_squad_t5", "results_dir": str(results), "task_name": "squad", "model_family": "t5"},
            "trainer": {"devices": 1, "num_nodes": 1, "accelerator": "cpu", "precision": 32},
            "inference": inference,
            "language_model_path": str(base),
            "adapter_model_file": str(adapter),
            "pred_file_path": str(results / "predictions.txt"),
            "ground_truth_file_path": str(data / "truth.jsonl"),
            "data_paths": [str(data / "test.jsonl")],
            "split_string": "answer :",
            "compare_with_base": True,
            "training_summary_path": None,
            "summary_path": None,
        }
        | changes
    )
