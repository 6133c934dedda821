# SPDX-License-Identifier: Apache-2.0
"""A tiny frozen model and its data, for the engine's tests."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nemo_launcher.adapters.injection import AdapterSet
from nemo_launcher.data.batching import Collate, GlobalBatch
from nemo_launcher.data.layout import Layout
from nemo_launcher.families.base import Base, load_base
from nemo_launcher.families.gpt.packing import pack
from nemo_launcher.families.gpt.samples import GPTSample
from nemo_launcher.megatron.attention_plan import AttentionPlan, Group
from nemo_launcher.training.loss import TrainingLoss
from nemo_launcher.training.step import forward_backward
from tests.made import converted
from tests.versions import hf_config

torch.set_num_threads(1)  # the models are too small for more threads

TEMPLATE = "context: {context} question: {question} answer: {answer}"
PLACES = ("the river", "an old town", "the harbour", "a high hill", "the market", "a long road")
NAMES = ("Anna", "Boris", "Clara", "David", "Elena", "Frank")
BOTTLENECK = {
    "type": "parallel_adapter",
    "adapter_dim": 4,
    "adapter_dropout": 0.0,
    "norm_position": "pre",
    "norm_type": "mixedfusedlayernorm",
    "column_init_method": "xavier",
    "row_init_method": "zero",
}


# --- model ------------------------------------------------------------------------------------------------------


def save_tokenizer(folder: Path) -> int:
    """Save a byte-level BPE tokenizer trained on toy sentences; return its number of tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    records = squad_records(24)
    tokenizer.train_from_iterator([TEMPLATE.format(**record) for record in records], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token=None
    )
    fast.save_pretrained(folder)
    return len(fast)


def save_llama(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Save a random Llama-shaped Hugging Face model with its tokenizer; `changes`: arguments of LlamaConfig."""
    from transformers import LlamaForCausalLM

    num_tokens = save_tokenizer(folder)
    options: dict[str, Any] = {
        "vocab_size": num_tokens + 5,  # with padding rows, as in most published models
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "initializer_range": 0.3,  # logits far enough apart that rounding cannot change the most likely token
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(hf_config("Llama", **options | changes)).eval()
    with torch.no_grad():  # norms of ones would hide missing or misplaced norms
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    return folder


def tiny_gpt_nemo(path: Path, **changes: Any) -> Path:
    """Convert a random Llama-shaped model (`save_llama`) into the base checkpoint `path`; return `path`."""
    return converted(path, save_llama, **changes)


@torch.no_grad()
def logits_of(base: Base | Path, ids: Tensor) -> Tensor:
    """Return a frozen model's logits of a sequence, [1, s] -> [1, s, vocabulary]; a path stands for its base."""
    loaded = load_base(base) if isinstance(base, Path) else base
    length = ids.size(1)
    positions = torch.arange(length, device=loaded.device)[None]
    logits: Tensor = loaded.model(ids.to(loaded.device), positions, AttentionPlan([Group(0, (length,))]))
    return logits.to(ids.device)


def randomize(adapters: AdapterSet, seed: int = 0, scale: float = 0.3) -> None:
    """Change every adapter weight from its initial value, so that each has an effect and a gradient."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_((scale * torch.randn(parameter.shape, generator=generator)).to(parameter.device))


def frozen_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's parameters by name, including packed ones (megatron.packed_weight)."""
    weights = dict(model.named_parameters())
    for path, module in model.named_modules():
        if getattr(module, "packed", None) is not None:
            weights[f"{path}.weight"] = module.packed.dense()
    return weights


def adapted(path: Path, config: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> tuple[Base, AdapterSet]:
    """Return a base of the given dtype with random adapters; `config` is the `model` section."""
    base = load_base(path, dtype=dtype)
    adapters = AdapterSet(base.model, base.shape, config)
    randomize(adapters)
    return base, adapters


# --- data -------------------------------------------------------------------------------------------------------


def squad_records(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Return toy SQuAD records, four questions per context, with learnable answers (they repeat the context)."""
    generator = random.Random(seed)
    records = []
    for number in range(count):
        if number % 4 == 0:
            placed = dict(zip(generator.sample(NAMES, 4), generator.sample(PLACES, 4), strict=True))
            context = " ".join(f"{name} lives near {place}." for name, place in placed.items())
        name = list(placed)[number % 4]
        question = f"Where does {name} live?"
        records.append({"taskname": "squad", "context": context, "question": question, "answer": placed[name]})
    return records


def write_jsonl(path: Path, records: Iterable[Mapping[str, Any]]) -> Path:
    """Write one JSON object per line; return `path`."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def write_squad(folder: Path, train: int = 16, validation: int = 6) -> Path:
    """Write squad_{train,val,test}.jsonl and squad_test_ground_truth.jsonl into `folder`; return it."""
    folder.mkdir(parents=True, exist_ok=True)
    records = squad_records(validation, seed=1)
    write_jsonl(folder / "squad_train.jsonl", squad_records(train))
    write_jsonl(folder / "squad_val.jsonl", records)
    write_jsonl(folder / "squad_test.jsonl", [{k: v for k, v in r.items() if k != "answer"} for r in records])
    truths = [r | {"id": f"q{i}", "answer": [r["answer"], r["answer"].upper()]} for i, r in enumerate(records)]
    write_jsonl(folder / "squad_test_ground_truth.jsonl", truths)
    return folder


def random_tree(seed: int, vocab_size: int, count: int = 9, max_length: int = 40) -> list[GPTSample]:
    """Return samples whose prompts share prefixes in a random tree: long, short, none, or the whole prompt.

    With a max_length of 100 the tree has several levels.
    """
    generator = random.Random(seed)

    def draw(low: int, high: int) -> list[int]:
        return [generator.randrange(3, vocab_size) for _ in range(generator.randint(low, high))]

    trunks: list[list[int]] = [draw(20, 30)]
    samples = []
    for _ in range(count):
        trunk = generator.choice(trunks)[: generator.randint(5, max_length - 10)]
        ids = (trunk + draw(0, 12))[:max_length]
        trunks.append(ids if generator.random() < 0.8 else draw(18, 30))
        ids = ids + draw(1, 6)
        samples.append(GPTSample(ids, generator.randint(0, len(ids) - 1), {}, ""))
    generator.shuffle(samples)
    return samples


def gradients_of(
    base: Base,
    adapters: AdapterSet,
    samples: Sequence[GPTSample],
    *,
    micro_batch_size: int,
    share_prefix: bool = True,
    keep_groups: bool = False,
    nemo_compat: bool = False,
) -> tuple[float, dict[str, Tensor], GlobalBatch]:
    """Return loss, gradients by parameter, and the batch, for one global batch."""
    for parameter in adapters.parameters():
        parameter.grad = None
    batch = Collate(Layout.one_after_the_other(micro_batch_size), share_prefix, pack=pack, keep_groups=keep_groups)(
        samples
    )
    batch = batch.to(next(base.model.parameters()).device)
    loss = forward_backward(base.model, batch, backward=True, loss=TrainingLoss(nemo_compat=nemo_compat))
    return float(loss), named_gradients(adapters), batch


def named_gradients(adapters: AdapterSet) -> dict[str, Tensor]:
    """Return the gradients by NeMo's parameter names (`<layer>.adapter_layer.<name>.<tensor>`)."""
    return {
        f"{key.replace(':', '.adapter_layer.')}.{name}": parameter.grad.clone().cpu()
        for key, adapter in adapters.adapters.items()
        for name, parameter in adapter.named_parameters()
        if parameter.grad is not None
    }
