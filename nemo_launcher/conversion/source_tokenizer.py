# SPDX-License-Identifier: Apache-2.0
"""Convert the tokenizer of a source for the base model; token ids are those of the source's own files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_launcher.checkpoint.archive import TOKENIZER_FOLDER
from nemo_launcher.checkpoint.gguf_model import GGUFModel
from nemo_launcher.checkpoint.gguf_tokens import (
    AS_GPT2,
    AS_LLAMA_CPP,
    DIGITS,
    IGNORE_MERGES,
    LISTED,
    SPECIAL,
    strips_right,
    vocabulary,
)
from nemo_launcher.checkpoint.hf_folder import CONFIG, PROCESSOR_TEMPLATE, SENTENCEPIECE, TOKENIZER_JSON, HFFolder
from nemo_launcher.conversion.probe import TEXTS
from nemo_launcher.data.fast_tokenizers import check_backend, prefix_space
from nemo_launcher.data.tokenizer_folder import check_folder
from nemo_launcher.data.tokenizers import SentencePieceTokenizer, from_folder
from nemo_launcher.errors import Problem, UserError, json_kind
from nemo_launcher.files.foreign import load_json, parse_json, quiet_panics, reading
from nemo_launcher.files.temporary import temporary_folder
from nemo_launcher.files.values import Section, whole
from nemo_launcher.requirements import is_at_least

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

MODEL_MEMBER = "tokenizer.model"
MAX_ID = 1 << 24
"""Maximum token id, sixty times that of the largest vocabularies."""
_SAVED_BYTES = 64 << 20
"""Size of the largest tokenizer's files, with 256,000 tokens."""
_OTHERWISE = ("gemma2", "gemma3", "phi3")
"""Architectures of GGUF files whose tokenizer transformers before AS_LLAMA_CPP reads with other settings."""
_NAMED = ("bos", "eos", "unk", "pad", "sep", "cls", "mask")


@dataclass(frozen=True, slots=True)
class SourceTokenizer:
    """The tokenizer of a source in the form for the base model."""

    files: dict[str, bytes]
    """Archive members by name."""
    section: dict[str, object]
    """The `tokenizer` section of the base model's configuration."""
    encode: Callable[[str], list[int]]
    """Returns the expected ids of a text, from the source's own files."""
    special: dict[str, int | None]
    """The expected ids of bos, eos, pad and unk."""
    vocab: dict[str, int]
    """The vocabulary as {token: id}."""
    added: dict[str, int]
    """Tokens outside the vocabulary as {token: id}."""
    marks: str
    """A text made of the added tokens in the source's own files, for comparing ids."""


def read_tokenizer(origin: HFFolder | GGUFModel, config: PretrainedConfig) -> SourceTokenizer:
    """Read the tokenizer of a source. Raises UserError if its token ids cannot be reproduced exactly."""
    if isinstance(origin, GGUFModel):
        with reading(f"{origin.path}: tokenizer", "use the model's Hugging Face folder"), quiet_panics():
            return _as_saved(_of_gguf(origin))
    if origin.config.get("auto_map"):
        print(f"{origin.files[CONFIG]}: auto_map is ignored: code from the folder is never run", flush=True)
    with reading(f"{origin.path}: tokenizer", "copy the tokenizer's files again"), quiet_panics():
        check_folder(origin.path, str(origin.path))
        if TOKENIZER_JSON in origin.files:
            _check_ids(origin.files[TOKENIZER_JSON])
        tokenizer = from_folder(origin.path, config=config)
        if tokenizer.chat_template is None:
            tokenizer.chat_template = _template_of_processor(origin)
        if TOKENIZER_JSON in origin.files:
            return _of_json(tokenizer, origin.files[TOKENIZER_JSON])
        model = next((origin.files[name] for name in SENTENCEPIECE if name in origin.files), None)
        if model is not None and config.model_type != "t5":
            return _of_sentencepiece(tokenizer, model)
        return _as_saved(tokenizer)


def _template_of_processor(origin: HFFolder) -> str | None:
    """Return the chat template that a folder has for its processor, of text and images, alone; or None."""
    path = origin.files.get(PROCESSOR_TEMPLATE)
    if path is None:
        return None
    content = load_json(path)
    template = content.get("chat_template") if isinstance(content, dict) else None
    if not isinstance(template, str):
        raise UserError(Problem(str(path), "has no text chat_template", "copy it again, or remove it"))
    return template


def _check_ids(path: Path) -> None:
    """Raise UserError for ids beyond MAX_ID in tokenizer.json, since the library allocates up to the largest id."""
    content = load_json(path)
    if not isinstance(content, dict):
        raise UserError(Problem(str(path), f"is {json_kind(content)}, not a tokenizer", "copy it again"))
    model, added = content.get("model"), content.get("added_tokens")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    ids = list(vocab.values()) if isinstance(vocab, dict) else []
    ids += [token.get("id") for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    wrong = next((number for number in ids if type(number) is not int or not 0 <= number <= MAX_ID), None)
    if wrong is not None or (None in ids):
        raise UserError(Problem(str(path), f"{str(wrong)[:40]} is not a token id", "copy it again"))


def _as_saved(tokenizer: PreTrainedTokenizerBase, raw: Tokenizer | None = None) -> SourceTokenizer:
    """Convert a tokenizer as transformers saves it. raw: the reference for its ids; None for the tokenizer itself."""
    tokenizer.init_kwargs.pop("auto_map", None)
    with temporary_folder(_SAVED_BYTES) as folder:
        tokenizer.save_pretrained(folder)
        paths = sorted(path for path in folder.iterdir() if path.is_file())
        files = {f"{TOKENIZER_FOLDER}/{path.name}": path.read_bytes() for path in paths}
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad", "unk")}

    def encode(text: str) -> list[int]:
        if raw is None:
            return list(tokenizer.encode(text, add_special_tokens=False))
        return raw.encode(text, add_special_tokens=False).ids

    section = {"library": "huggingface", "type": f"nemo:{TOKENIZER_FOLDER}", "use_fast": True}
    added = {str(token): number for number, token in tokenizer.added_tokens_decoder.items()}
    known = added if raw is None else [token.content for token in raw.get_added_tokens_decoder().values()]
    marks = "".join(f"{token}a b" for token in list(known)[:300])
    return SourceTokenizer(files, section, encode, ids, tokenizer.get_vocab(), added, marks)


# --- tokenizer.json -----------------------------------------------------------------------------------------------


def _of_json(tokenizer: object, path: Path) -> SourceTokenizer:
    """Convert tokenizer.json, without a transformers class that would change its behaviour."""
    from tokenizers import Tokenizer

    raw = Tokenizer.from_file(str(path))
    check_backend(raw)
    raw.no_padding()
    raw.no_truncation()
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not _agree(backend.to_str(), raw.to_str()):
        tokenizer = _plain(raw, tokenizer)
    return _as_saved(tokenizer, raw)


def _agree(ours: str, theirs: str) -> bool:
    """Return whether two tokenizers of the `tokenizers` library give the same ids."""
    first, second = (parse_json(text, TOKENIZER_JSON, unique_keys=False) for text in (ours, theirs))
    if any(first[part] != second[part] for part in ("normalizer", "pre_tokenizer", "model")):
        return False
    added = [
        {
            (t["id"], t["content"], t["single_word"], t["lstrip"], t["rstrip"], t["normalized"])
            for t in x["added_tokens"]
        }
        for x in (first, second)
    ]
    return added[1] <= added[0]


def _plain(backend: Tokenizer, like: object) -> PreTrainedTokenizerBase:
    """Return a plain transformers tokenizer for a backend, with the special tokens and chat template of `like`."""
    from transformers import PreTrainedTokenizerFast

    named = {f"{name}_token": getattr(like, f"{name}_token", None) for name in _NAMED}
    options = {key: value for key, value in named.items() if value} | prefix_space(backend)
    plain = PreTrainedTokenizerFast(tokenizer_object=backend, **options)
    plain.chat_template = getattr(like, "chat_template", None)
    return plain


# --- tokenizer.model ----------------------------------------------------------------------------------------------


def _of_sentencepiece(tokenizer: PreTrainedTokenizerBase, path: Path) -> SourceTokenizer:
    """Convert tokenizer.model: unchanged, or as a fast tokenizer if tokens were added to it."""
    model = path.read_bytes()
    exact = SentencePieceTokenizer(model)
    if len(tokenizer) <= exact.vocab_size:
        ids = {"bos": exact.bos_id, "eos": exact.eos_id, "pad": exact.pad_id, "unk": exact.unk_id}
        section: dict[str, object] = {"library": "sentencepiece", "type": None, "model": f"nemo:{MODEL_MEMBER}"}
        vocab = {str(exact.tokenizer.id_to_piece(number)): number for number in range(exact.vocab_size)}
        return SourceTokenizer({MODEL_MEMBER: model}, section, exact.text_to_ids, ids, vocab, {}, "")
    backend = tokenizer.backend_tokenizer
    _mark_spaces(backend, prefix=True)
    plain = _plain(backend, tokenizer)
    wrong = next((t for t in TEXTS if plain.encode(t, add_special_tokens=False) != exact.text_to_ids(t)), None)
    if wrong is not None:
        what = f"tokens were added to it, and without them {wrong[:30]!r} would get different ids"
        raise UserError(Problem(str(path), what, "put tokenizer.json of the model into the folder"))
    return _as_saved(plain)


def _mark_spaces(backend: Tokenizer, *, prefix: bool) -> None:
    """Make a backend mark spaces as SentencePiece does. prefix: also mark the beginning of a text."""
    from tokenizers import decoders, normalizers

    spaces = normalizers.Replace(" ", "\u2581")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), spaces]) if prefix else spaces
    backend.pre_tokenizer = None
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)


# --- GGUF ---------------------------------------------------------------------------------------------------------


def _let_transformers_find_gguf() -> None:
    """Tell transformers which distribution provides `gguf`, which it cannot find before Python 3.11."""
    from transformers.utils import import_utils

    distributions = getattr(import_utils, "PACKAGE_DISTRIBUTION_MAPPING", None)
    if isinstance(distributions, dict):
        distributions.setdefault("gguf", ["gguf"])


def _of_gguf(model: GGUFModel) -> PreTrainedTokenizerBase:
    """Return the tokenizer that a GGUF file describes: exactly its tokens and ids, with its rules for splitting."""
    from tokenizers import Tokenizer, pre_tokenizers

    _let_transformers_find_gguf()
    metadata = model.metadata
    _check_version(metadata, model.path)
    tokenizer = from_folder(model.path.parent, gguf_file=model.path.name)
    tokens = vocabulary(metadata)
    content = parse_json(tokenizer.backend_tokenizer.to_str(), str(model.path), unique_keys=False)
    # without tokens that the transformers class adds
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < len(tokens)]
    for token in content["added_tokens"]:
        token["rstrip"] = strips_right(metadata, token["content"])
    pre = metadata.get("tokenizer.ggml.pre")
    content["model"]["ignore_merges"] = pre in IGNORE_MERGES
    backend = Tokenizer.from_str(json.dumps(content))
    if metadata["tokenizer.ggml.model"] != "gpt2":
        _mark_spaces(backend, prefix=bool(metadata.get("tokenizer.ggml.add_space_prefix", True)))
    elif pre in DIGITS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    elif pre is None or pre == AS_GPT2[2]:
        print(f"{model.path} does not specify how text is split into words; GPT-2's rules are used", flush=True)
    special = {f"{name}_token": _token(metadata, key) for name, key in SPECIAL.items()}
    plain = _plain(backend, _Named(special, tokenizer.chat_template))
    _check_vocabulary(plain, tokens, model.path)
    return plain


def _check_version(metadata: Section, path: Path) -> None:
    """Raise UserError for tokenizers that an older transformers does not read as llama.cpp does."""
    import transformers

    pre, kind = (metadata.get(key) for key in ("tokenizer.ggml.pre", "general.architecture"))
    if not is_at_least("transformers", AS_LLAMA_CPP) and (pre in LISTED or kind in _OTHERWISE):
        name = kind if kind in _OTHERWISE else pre
        what = f"transformers {transformers.__version__} reads the tokenizer of {name!r} differently than llama.cpp"
        raise UserError(
            Problem(str(path), what, f"install transformers {AS_LLAMA_CPP}, or use the model's Hugging Face folder")
        )


def _token(metadata: Section, key: str) -> str | None:
    number = whole(metadata, f"tokenizer.ggml.{key}")
    return None if number is None else vocabulary(metadata)[number]


class _Named:
    """Special tokens under transformers' names."""

    def __init__(self, special: Mapping[str, str | None], chat_template: object) -> None:
        self.__dict__.update(special)
        self.chat_template = chat_template


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, tokens: list[str], path: Path) -> None:
    """Raise UserError unless the tokenizer has exactly the file's tokens and ids."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    spelling = bytes_to_unicode()

    def spellings(token: str) -> tuple[str, ...]:
        marked = "\u2581" * len(token) if token.isspace() else token  # Gemma's tokens of several spaces
        return token, marked, "".join(spelling[byte] for byte in token.encode())

    vocab = {number: token for token, number in tokenizer.get_vocab().items()}
    wrong = [number for number, token in enumerate(tokens) if vocab.get(number) not in spellings(token)]
    if wrong or len(vocab) != len(tokens):
        what = (
            f"{len(tokens)} tokens, now {len(vocab)}" if not wrong else f"token {tokens[wrong[0]]!r} got a different id"
        )
        raise UserError(Problem(f"{path}: tokenizer", what, "use the model's Hugging Face folder"))
