# SPDX-License-Identifier: Apache-2.0
"""Models for the benchmarks, as Hugging Face folders and converted `.nemo` files:

    python benchmarks/base_models.py --data SQUAD_V1.json --folder FOLDER

FOLDER/smollm2 and smollm2.nemo are the quickstart's SmolLM2-135M-Instruct (fetched by `make base-model`) in fp32;
FOLDER/t5 and t5.nemo are a random T5 in the shape of v1.1-small, with a tokenizer trained on the data's text.
smollm2-short and t5-short are their first layers, for long documents. What is there already is kept.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.trainers import UnigramTrainer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

from launcher_scripts.fetch_base_model import TARGET as GGUF
from nemo_launcher.conversion.convert import convert
from nemo_launcher.data.squad_format import read_questions

PIECES, EXTRA = 32000, 100  # pieces and extra ids of T5's vocabulary, which has 32128 rows
SHORT = 2
"""The number of layers, of each stack, in the models for long documents."""
CONTEXT = 8192
"""The maximum number of tokens in a prompt of the T5, whose relative positions have no limit of their own."""


def save_smollm2(folder: Path) -> None:
    """Save the quickstart's base in fp32."""
    options = {"gguf_file": GGUF.name}
    read = AutoModelForCausalLM.from_pretrained(GGUF.parent, dtype=torch.float32, **options)
    read.config.__dict__.pop("quantization_config", None)  # transformers refuses to save a model read from GGUF
    read.config.rope_theta = read.config.rope_parameters["rope_theta"]  # transformers 4 reads it here
    model = type(read)(read.config).float()
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(GGUF.parent, **options).save_pretrained(folder)


def save_t5(folder: Path, data: Path) -> None:
    """Save a random T5 and its tokenizer."""
    tokenizer = Tokenizer(Unigram())
    tokenizer.pre_tokenizer = Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = UnigramTrainer(vocab_size=PIECES, special_tokens=special, unk_token=special[2], show_progress=False)
    tokenizer.train_from_iterator(texts(data), trainer)
    pieces = [tuple(piece) for piece in json.loads(tokenizer.to_str())["model"]["vocab"]]
    sentinels = [(f"<extra_id_{number}>", 0.0) for number in reversed(range(EXTRA))]
    T5Tokenizer(vocab=[*pieces, *sentinels], extra_ids=EXTRA).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"d_model": 512, "d_kv": 64, "num_heads": 6, "d_ff": 1024, "num_layers": 8, "num_decoder_layers": 8}
    config = T5Config(
        **shape,
        vocab_size=32128,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        n_positions=CONTEXT,
    )
    model = T5ForConditionalGeneration(config)
    # transformers 5 ties every T5's head; v1.1 has its own
    head = torch.empty_like(model.lm_head.weight).normal_(std=shape["d_model"] ** -0.5)
    model.lm_head.weight = torch.nn.Parameter(head)
    model.save_pretrained(folder)


def save_short(source: Path, folder: Path) -> None:
    """Save a model's first layers, with its tokenizer."""
    is_t5 = json.loads((source / "config.json").read_text(encoding="utf-8"))["model_type"] == "t5"
    auto = AutoModelForSeq2SeqLM if is_t5 else AutoModelForCausalLM
    model = auto.from_pretrained(source, dtype=torch.float32)
    for stack, layers in ((model.encoder, "block"), (model.decoder, "block")) if is_t5 else ((model.model, "layers"),):
        setattr(stack, layers, getattr(stack, layers)[:SHORT])
    names = ("num_layers", "num_decoder_layers") if is_t5 else ("num_hidden_layers",)
    model.config.update(dict.fromkeys(names, SHORT))
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[:SHORT]
    model.save_pretrained(folder)
    for path in source.glob("*token*"):
        shutil.copyfile(path, folder / path.name)


def texts(data: Path) -> Iterator[str]:
    """Yield the contexts and questions in a file in the SQuAD format."""
    for question in read_questions(data):
        yield question.context
        yield question.question


def make(name: str, folder: Path, data: Path) -> None:
    """Make one model and its archive, which appears when all is complete."""
    if (folder / f"{name}.nemo").is_file():
        return
    whole = name.removesuffix("-short")
    if name != whole:
        make(whole, folder, data)
        save_short(folder / whole, folder / name)
    elif name == "t5":
        save_t5(folder / name, data)
    else:
        save_smollm2(folder / name)
    convert(folder / name, folder / f"{name}.nemo", 32)


def main() -> None:
    """Write the models."""
    names = ("smollm2", "t5", "smollm2-short", "t5-short")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="questions in the SQuAD v1.1 format")
    parser.add_argument("--folder", required=True, type=Path, help="where the models go")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="the models to make; default: all")
    options = parser.parse_args()
    if not GGUF.is_file():
        parser.error(f"{GGUF} is not there: run `make base-model`")
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        make(name, options.folder, options.data)


if __name__ == "__main__":
    main()
