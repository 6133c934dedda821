# SPDX-License-Identifier: Apache-2.0
"""Checks of the vocabulary in a GGUF file. Imports no torch and no tokenizer library."""

from __future__ import annotations

import math
from collections import Counter

from nemo_launcher.checkpoint.stored_tensor import shown
from nemo_launcher.errors import Problem
from nemo_launcher.files.values import Section

KINDS = ("gpt2", "llama")
"""Values of `tokenizer.ggml.model`: byte-level BPE and SentencePiece."""
DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone")
"""Values of `tokenizer.ggml.pre` that split off each digit and then split like GPT-2."""
AS_GPT2 = ("gpt-2", "gpt2", "default", "olmo", "jais", "phi-2", "mpt", "trillion", "granite-docling")
"""Values of `tokenizer.ggml.pre` that split like GPT-2; older converters wrote `default`."""
LISTED = (
    *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
    *("dbrx", "smaug-bpe", "tekken", "qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "qwen35", "gpt-4o"),
    *("llama4", "kanana2", "talkie", "minimax-m2"),
)
"""Values of `tokenizer.ggml.pre` with a regular expression in transformers."""
AS_LLAMA_CPP = "5.18"
"""The first version of transformers that reads tokenizers of the values above, and some others, as llama.cpp does."""
IGNORE_MERGES = (*("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken"),)
"""Values of `tokenizer.ggml.pre` with which a word that is a token stays whole, whatever the merges (llama.cpp)."""
SPECIAL = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id"}
_AS_LLAMA: dict[str, tuple[object, ...]] = {
    "remove_extra_whitespaces": (False,),
    "treat_whitespace_as_suffix": (False,),
    "escape_whitespaces": (True,),
    "precompiled_charsmap": ("", []),
}
"""SentencePiece settings that are not converted, with the values that have no effect."""
_WITHOUT_PREFIX = ("gemma2", "gemma3")
"""Architectures whose SentencePiece vocabulary does not mark the beginning of a text."""
_READ = (
    *("model", "pre", "tokens", "token_type", "scores", "merges", "add_space_prefix", *SPECIAL.values(), *_AS_LLAMA),
    *("add_bos_token", "add_eos_token", "add_sep_token", "token_type_count"),
)
"""Keys below `tokenizer.ggml` that are read, or that do not change the ids of a text."""
_FIX = "use another file of the model, or its Hugging Face folder"


def token_problems(metadata: Section, rows: object, source: str, architecture: str) -> list[Problem]:
    """Return the problems of a vocabulary; rows: number of rows in the model's embedding."""

    def problem(key: str, what: str) -> Problem:
        return Problem(f"{source}: tokenizer.ggml.{key}", what, _FIX)

    kind = metadata.get("tokenizer.ggml.model")
    if kind not in KINDS:
        return [problem("model", f"{str(kind)[:40]!r} is not supported; supported: {', '.join(KINDS)}")]
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not (isinstance(tokens, list) and tokens and all(isinstance(token, str) for token in tokens)):
        return [problem("tokens", "holds no vocabulary")]
    problems = []
    if len(set(tokens)) < len(tokens):
        twice = max(Counter(tokens).items(), key=lambda item: item[1])[0]
        problems.append(problem("tokens", f"the token {twice[:40]!r} occurs twice"))
    if type(rows) is int and len(tokens) > rows:
        problems.append(problem("tokens", f"{len(tokens)} tokens, but the embedding has {rows} rows"))
    for key, element in (("token_type", int), ("scores", float)):
        values = metadata.get(f"tokenizer.ggml.{key}")
        if values is None:
            continue
        if not (isinstance(values, list) and len(values) == len(tokens) and all(type(v) is element for v in values)):
            problems.append(problem(key, "does not have one number per token"))
        elif not all(map(math.isfinite, values)):
            problems.append(problem(key, "holds a number that is not finite"))
    merges = metadata.get("tokenizer.ggml.merges")
    if kind == "gpt2" and not _are_merges(merges):
        problems.append(problem("merges", "does not hold merges of two tokens each"))
    if kind == "llama" and metadata.get("tokenizer.ggml.scores") is None and not _are_merges(merges):
        problems.append(problem("scores", "is absent"))
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    if type(prefix) is not bool:
        problems.append(problem("add_space_prefix", "is neither true nor false"))
    elif kind == "llama" and prefix and architecture in _WITHOUT_PREFIX:
        problems.append(problem("add_space_prefix", f"is not false, as it is for {architecture}"))
    for key in sorted(metadata):
        name = key.removeprefix("tokenizer.ggml.")
        if name not in (key, *_READ) and not name.endswith(("_token_id", "_token_ids")) and metadata[key]:
            problems.append(
                problem(shown(name), f"{str(metadata[key])[:40]!r} is not supported: token ids might differ")
            )
    for key, harmless in _AS_LLAMA.items():
        value = metadata.get(f"tokenizer.ggml.{key}", harmless[0])
        if value not in harmless:
            problems.append(problem(key, f"{str(value)[:40]!r} is not supported: token ids would differ"))
    pre = metadata.get("tokenizer.ggml.pre", "default")
    if kind == "gpt2" and pre not in (*DIGITS, *AS_GPT2, *LISTED):
        problems.append(problem("pre", f"{str(pre)[:40]!r} is not a known pre-tokenizer"))
    for key in SPECIAL.values():
        number = metadata.get(f"tokenizer.ggml.{key}")
        if number is not None and not (type(number) is int and 0 <= number < len(tokens)):
            problems.append(problem(key, f"{str(number)[:40]} is not one of {len(tokens)} tokens"))
    return problems


def strips_right(metadata: Section, token: str) -> bool:
    """Return whether a special token takes the spaces behind it: those of Phi-3's own vocabulary but its first three.

    Source: llama.cpp, src/llama-vocab.cpp (attributes by the model's name), and Phi-3's tokenizer.json.
    """
    is_phi3 = metadata.get("general.architecture") == "phi3" and metadata["tokenizer.ggml.model"] == "llama"
    return is_phi3 and token not in ("<unk>", "<s>", "<|endoftext|>")


def vocabulary(metadata: Section) -> list[str]:
    """Return the tokens of a file that has no token_problems."""
    tokens = metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    return tokens


def _are_merges(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(merge, str) and merge.count(" ") == 1 for merge in value)
