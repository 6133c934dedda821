# SPDX-License-Identifier: Apache-2.0
"""Fetch a model of the hub into its cache.

`python -m nemo_launcher.checkpoint.hub_model_fetch SOURCE RECORD [--language-model]` is a process of its own
(hub/fetching.py). Only files that a conversion reads are fetched, never code; the configuration
comes first, so that a model that is not supported costs no download.
"""

from __future__ import annotations

import contextlib
import fnmatch
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from nemo_launcher.checkpoint.hf_folder import CONFIG, settings_problems
from nemo_launcher.checkpoint.hf_weights import INDEX, PICKLE, PICKLE_INDEX, SINGLE, index_files
from nemo_launcher.checkpoint.hub_model import PAGE, FetchedModel, HubModel, cached, download_command, model_named
from nemo_launcher.checkpoint.sources import check_source
from nemo_launcher.checkpoint.stored_tensor import some_of
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.atomic import write_json
from nemo_launcher.files.foreign import load_json, name_problem
from nemo_launcher.hub.fetching import Asked, child_status, hub_problem, not_fetched

_BESIDE = ("*.json", "*.jinja", "*.model", "merges.txt", "README.md", "LICENSE*")
"""What is fetched beside the weights: configuration, tokenizer, card."""
LANGUAGE_MODEL = "--language-model"
"""The option of this process that asks for the language model of a multi-modal model."""
_MOST = 64 * 2**20
"""The largest of these files, in bytes."""


def main(text: str, record: str, *options: str) -> int:
    """Fetch the model that `text` names, write the record, and return the exit status."""
    return child_status(lambda: fetch(text, Path(record), language_model=LANGUAGE_MODEL in options))


def fetch(text: str, record: Path, *, language_model: bool = False) -> None:
    """Fetch a model and write the record of its commit and files.

    language_model: whether the language model of a multi-modal model is asked for; its whole folder is fetched.
    Raises UserError if the hub does not answer and the cache lacks the model, if the hub does not have or give out the
    model, or if it cannot be converted.
    """
    model = model_named(text, text)
    assert model is not None  # the launcher passes a name of the hub
    try:
        with contextlib.redirect_stdout(sys.stderr):
            folder, files = _fetched(model, language_model)
    except UserError:
        raise
    except Exception as error:  # of the hub's library or of its connection; none of them is a mistake in this program
        folder, files = _from_cache(model, error, language_model)
    found = {"source": str(model), "revision": folder.name, "folder": str(folder)}
    write_json(record, found | {"files": {name: (folder / name).stat().st_size for name in files}})


def _fetched(model: HubModel, language_model: bool) -> tuple[Path, list[str]]:
    """Fetch what is missing; return the folder in the cache and the names of the files."""
    from huggingface_hub import HfApi

    revision = model.revision or "main"
    folder = _download(model, revision, [CONFIG])
    info = HfApi().model_info(model.name, revision=folder.name, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    if model.file is not None:
        names = [model.file]
        if model.file not in sizes:
            raise UserError(_no_file(model, sizes, f"has no {model.file}"))
    else:
        beside = [name for name in sizes if _is_beside(name, sizes[name])]
        _download(model, folder.name, beside)
        names = beside + _weights(model, folder, sizes, language_model)
    odd = [name for name in names if name_problem(name) is not None]
    if odd:
        raise UserError(Problem(str(model), f"has files with unusable names: {some_of(odd)}", _ANOTHER))
    _check_room(model, folder, sum(sizes[name] for name in names if not (folder / name).exists()))
    _download(model, folder.name, names)
    return folder, names


def _download(model: HubModel, revision: str, names: list[str]) -> Path:
    """Fetch files, which the cache may hold already; return the folder of their commit."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model.name, revision=revision, allow_patterns=[_literal(name) for name in names]))


def _literal(name: str) -> str:
    """Return the pattern that matches a file's name alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _is_beside(name: str, size: int) -> bool:
    return "/" not in name and size <= _MOST and any(fnmatch.fnmatchcase(name, pattern) for pattern in _BESIDE)


def _weights(model: HubModel, folder: Path, sizes: Mapping[str, int], language_model: bool) -> list[str]:
    """Return the files of the weights. Raises UserError for a model that cannot be converted."""
    if CONFIG not in sizes:
        raise UserError(_no_file(model, sizes, f"holds no {CONFIG}"))
    config = load_json(folder / CONFIG)
    found = config if isinstance(config, dict) else {}
    problems = settings_problems(found, folder / CONFIG, language_model=language_model)
    if problems:
        raise UserError([Problem(str(model), f"{CONFIG}: {problem.what}", problem.fix) for problem in problems])
    for index, single in ((INDEX, SINGLE), (PICKLE_INDEX, PICKLE)):
        if index in sizes:
            listed = sorted(set(index_files(folder / index).values()))
            absent = [name for name in listed if name not in sizes]
            if absent:
                raise UserError(Problem(str(model), f"{index} lists absent files: {some_of(absent)}", _ANOTHER))
            return listed
        if single in sizes:
            return [single]
    raise UserError(_no_file(model, sizes, f"holds neither {SINGLE} nor {PICKLE}"))


_ANOTHER = "name another model or revision"


def _no_file(model: HubModel, sizes: Mapping[str, int], what: str) -> Problem:
    """Return the problem of a model without the files to convert; it suggests a .gguf file if there is one."""
    found = sorted(name for name in sizes if name.endswith(".gguf"))
    if not found:
        return Problem(str(model), what, _ANOTHER)
    names = " or ".join(str(HubModel(model.name, model.revision, name)) for name in found[:3])
    return Problem(str(model), f"{what}, but {len(found)} GGUF files", f"choose one: {names}")


def _check_room(model: HubModel, folder: Path, wanted: int) -> None:
    disk = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(disk).free
    if wanted > free:
        what = f"needs {wanted / 2**20:,.0f} MiB, {disk} has {free / 2**20:,.0f} MiB free"
        raise UserError(Problem(str(model), what, "free some space, or name another cache: export HF_HUB_CACHE=..."))


def _from_cache(model: HubModel, error: Exception, language_model: bool) -> tuple[Path, list[str]]:
    """Return the cached model if it is complete. Raises UserError, for the error of the hub, if it is not."""
    asked = Asked(str(model), "model", model.name, model.revision, f"https://{PAGE}/{model.name}")
    command = download_command(model)
    fix = f"run `{command}` where there is a network, on the same disk or with a copied HF_HOME"
    told = hub_problem(
        error,
        asked,
        disk=Problem(str(model), "", "free some space, or name another cache: export HF_HUB_CACHE=..."),
        offline=Problem(str(model), "is not in the hub's cache, and HF_HUB_OFFLINE forbids to fetch it", fix),
    )
    found = cached(model)
    if found is not None and _is_whole(found, language_model):
        folder = found.path.parents[len(Path(model.file).parts) - 1] if model.file else found.path
        names = [model.file] if model.file else [path.name for path in folder.iterdir() if path.is_file()]
        return folder, names
    raise UserError(told or not_fetched(error, str(model), fix)) from error


def _is_whole(found: FetchedModel, language_model: bool) -> bool:
    try:
        check_source(found.path, language_model=language_model)
    except UserError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
