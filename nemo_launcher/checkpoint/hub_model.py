# SPDX-License-Identifier: Apache-2.0
"""Models on the Hugging Face Hub, as `hf_model_path` names them: `OWNER/NAME`, or `hf:NAME[?revision=R][&file=F]`.

A launch fetches a model once into the hub's own cache (checkpoint/hub_model_fetch.py), and the job converts the folder
there. A record below `data_dir` holds the commit and the files. This module imports nothing heavy.

Source of the cache's layout: the documentation of huggingface_hub, "Understand caching".
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.foreign import load_json
from nemo_launcher.hub.names import COMMIT, NAME, PREFIX, file_below, parse, written

PAGE = "huggingface.co"
_KEYS = ("revision", "file")
_EXAMPLE = "hf:Qwen/Qwen3-0.6B?revision=main"
_REVISION = re.compile(r"\w[\w./+-]*", re.ASCII)
_REPOSITORY, _SNAPSHOTS = "models--", "snapshots"


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model on the hub."""

    name: str
    """Its name, as in `Qwen/Qwen3-0.6B`."""
    revision: str | None = None
    """A branch, tag or commit; None for the branch `main`."""
    file: str | None = None
    """A .gguf file of it; None for its Hugging Face folder."""

    def __str__(self) -> str:
        return written(self.name, {key: getattr(self, key) for key in _KEYS})

    @property
    def title(self) -> str:
        """What a base that is made from it says about its source."""
        return self.file or self.name

    def record(self, data_dir: Path) -> Path:
        """Return the file that says what was fetched."""
        return file_below(data_dir, str(self), ".json")


@dataclass(frozen=True, slots=True)
class FetchedModel:
    """A model in the hub's cache."""

    model: HubModel
    """The model, with the commit as its revision."""
    path: Path
    """Its folder or .gguf file in the cache."""


def model_named(text: str, key: str) -> HubModel | None:
    """Return the model of the hub that a text names; None for a path. Raises UserError with all mistakes.

    `OWNER/NAME` is a path if it, or a folder `OWNER`, exists. key: the key that holds the text.
    """
    if not text.startswith(PREFIX):
        owner, slash, name = text.partition("/")
        is_path = not slash or not NAME.fullmatch(text) or Path(text).exists() or Path(owner).is_dir()
        return None if is_path or name.endswith((".gguf", ".nemo", ".json")) else HubModel(text)
    name, given, problems = parse(text, key, _KEYS, kind="model", page=PAGE, example=_EXAMPLE)
    file = given.get("file")
    if file and (not file.endswith(".gguf") or file.startswith("/") or ".." in Path(file).parts):
        fix = f"name a .gguf file of the model, or leave it out: {PREFIX}{name}"
        problems.append(Problem(key, f"{text!r}: {file!r} is not a .gguf file", fix))
    if not _REVISION.fullmatch(given.get("revision", "main")) or ".." in given.get("revision", ""):
        fix = f"name a branch, a tag or a commit, as in {_EXAMPLE!r}"
        problems.append(Problem(key, f"{text!r}: {given['revision']!r} is not a revision", fix))
    if problems:
        raise UserError(problems)
    return HubModel(name, given.get("revision"), file)


def model_of(path: Path) -> HubModel | None:
    """Return the model, with its commit, that a folder or file of the hub's cache belongs to; None outside of it."""
    folder = path if path.parent.name == _SNAPSHOTS else path.parent
    repository = folder.parent.parent.name
    if folder.parent.name != _SNAPSHOTS or not repository.startswith(_REPOSITORY) or not COMMIT.fullmatch(folder.name):
        return None
    name = repository.removeprefix(_REPOSITORY).replace("--", "/")
    return HubModel(name, folder.name, None if folder == path else path.name) if NAME.fullmatch(name) else None


def title_of(path: Path) -> str:
    """Return the name of a model at a path: that on the hub if it is in the hub's cache, otherwise the path's own."""
    model = model_of(path.absolute())
    return path.name or path.resolve().name if model is None else model.title


def fetched(model: HubModel, record: Path) -> FetchedModel | None:
    """Return the model that a record describes; None if there is none, or not all of its files are there."""
    try:
        found = load_json(record)
        commit, folder, files = found["revision"], Path(found["folder"]), found["files"]
        whole = found["source"] == str(model) and all((folder / n).stat().st_size == files[n] for n in files)
    except (OSError, UserError, TypeError, KeyError, AttributeError):
        return None
    if not whole or not isinstance(commit, str) or not COMMIT.fullmatch(commit):
        return None
    return FetchedModel(replace(model, revision=commit), folder / model.file if model.file else folder)


def cached(model: HubModel) -> FetchedModel | None:
    """Return a model in the hub's cache, perhaps without some of its files; None if the cache lacks its revision."""
    from huggingface_hub.constants import HF_HUB_CACHE

    repository = Path(HF_HUB_CACHE) / (_REPOSITORY + model.name.replace("/", "--"))
    commit = model.revision or "main"
    if not COMMIT.fullmatch(commit):
        try:
            commit = (repository / "refs" / commit).read_text().strip()
        except (OSError, UnicodeDecodeError):
            return None
    folder = repository / _SNAPSHOTS / commit
    path = folder / model.file if model.file else folder
    return FetchedModel(replace(model, revision=commit), path) if COMMIT.fullmatch(commit) and path.exists() else None


def download_command(model: HubModel) -> str:
    """Return the command that fetches a model where there is a network."""
    words = ["hf download", model.name, model.file, f"--revision {model.revision}" if model.revision else None]
    return " ".join(filter(None, words))


def local_source(text: str, key: str) -> Path:
    """Return the folder or file that `hf_model_path` means, in a job, which fetches nothing.

    key: the key that holds the text. Raises UserError for a model of the hub that is not in its cache.
    """
    model = model_named(text, key)
    if model is None:
        return Path(text)
    found = cached(model)
    if found is None:
        fix = f"launch it, which fetches it, or run `{download_command(model)}` where there is a network"
        raise UserError(Problem(key, f"{model} is not in the hub's cache on this machine", fix))
    return found.path
