# SPDX-License-Identifier: Apache-2.0
"""The samples of a training job, tokenised once: the next start with the same data, templates and tokenizer maps them.

Each cache is a file named by what its samples depend on. It is written under another name and renamed, so that jobs and
ranks which start at once never see half of one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic

from nemo_launcher import __version__
from nemo_launcher.data.cache_file import FORMAT, DamagedCacheError, SampleCache, open_cache, write_cache
from nemo_launcher.data.prompt_encoder import SampleEncoder
from nemo_launcher.data.prompts import encode_files, report_lengths, stream_samples
from nemo_launcher.data.samples import S
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.data.tokenizers import END_SENTINEL, FIRST_SENTINEL
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.atomic import atomic_path
from nemo_launcher.files.digest import sha256_of
from nemo_launcher.runtime import ranks

FOLDER_NAME = ".nemo_launcher_cache"
_SUFFIX = ".samples"
_KEPT_DAYS = 30  # since it was last used


def cache_folders(setting: str | bool | None, data_file: str | Path, results: str | Path) -> list[Path]:
    """Return the folders to look for caches in; new ones go into the first that takes them.

    setting: model.data.cache_dir; None: beside the data, or in `results` where that is unwritable; False: nowhere.
    """
    if setting is False:
        return []
    if setting is None:
        return [Path(data_file).parent / FOLDER_NAME, Path(results) / FOLDER_NAME]
    return [Path(str(setting))]


@dataclasses.dataclass(frozen=True, slots=True)
class _Source(Generic[S]):
    """What samples are made from."""

    paths: Sequence[str]
    """The data files."""
    templates: Sequence[TaskTemplate]
    """The task templates."""
    encoder: SampleEncoder[S]
    """Turns records into samples."""
    max_dropped_share: float
    """The share of samples that may be dropped as too long."""
    with_prefixes: bool
    """Whether it is also recorded which samples share a prefix."""

    def open(self, path: Path, *, vocab_size: int | None = None, verify: bool = True) -> SampleCache[S]:
        """Map a cache file of these samples (cache_file.open_cache)."""
        limit, kind = self.encoder.max_seq_length, self.encoder.sample_type
        return open_cache(path, self.paths, limit, kind, vocab_size=vocab_size, verify=verify)

    def vocab_size(self) -> int:
        """Return the number of tokens that a sample may hold, special ones beyond the tokenizer's count included."""
        tokenizer = self.encoder.tokenizer
        ids = [tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.unk_id, *tokenizer.special_ids]
        ids += [tokenizer.token_to_id(name) for name in (FIRST_SENTINEL, END_SENTINEL)]
        return max(tokenizer.vocab_size, *(1 + token for token in ids if token is not None))

    def key(self) -> str:
        """Return a hash of all that the samples depend on."""
        encoder: Any = self.encoder
        settings = {field.name: getattr(encoder, field.name) for field in dataclasses.fields(encoder)}
        del settings["limited_by"]  # for messages alone
        settings["tokenizer"] = self.encoder.tokenizer.identity
        description = {
            "version": [FORMAT, __version__, sys.byteorder],
            "files": [sha256_of(path) for path in self.paths],
            "templates": [dataclasses.asdict(template) for template in self.templates],
            "encoder": [type(encoder).__name__, settings],
            "max_dropped_share": self.max_dropped_share,
            "with_prefixes": self.with_prefixes,
        }
        return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def cached_samples(
    paths: Sequence[str],
    templates: Sequence[TaskTemplate],
    encoder: SampleEncoder[S],
    *,
    max_dropped_share: float,
    folders: Sequence[Path],
    with_prefixes: bool,
    report: Callable[[str], None] = print,
) -> Sequence[S]:
    """Return what `encode_files` returns, records apart, from a cache, which is made where there is none.

    folders: to look in (cache_folders). with_prefixes: the cache also holds which samples share a prefix.
    Where nothing can be written, or a tokenizer cannot be told from another, the samples stay in memory.
    """
    source = _Source(paths, templates, encoder, max_dropped_share, with_prefixes)
    with ranks.local_rank_zero_first():
        cache = _from_folders(source, folders, report)
    if cache is not None:
        return cache
    return encode_files(paths, templates, encoder, max_dropped_share=max_dropped_share, report=report)


def _from_folders(source: _Source[S], folders: Sequence[Path], report: Callable[[str], None]) -> SampleCache[S] | None:
    if (
        not folders
        or source.encoder.tokenizer.identity is None
        or not all(Path(path).is_file() for path in source.paths)
    ):
        return None
    key = source.key()
    return _found(source, key, folders, report) or _made(source, key, folders, report)


def _found(
    source: _Source[S], key: str, folders: Sequence[Path], report: Callable[[str], None]
) -> SampleCache[S] | None:
    for folder in folders:
        path = folder / (key + _SUFFIX)
        try:
            cache = source.open(path, vocab_size=source.vocab_size())
        except OSError:
            continue
        except DamagedCacheError:
            report(f"{path} is damaged; the data is tokenised again")
            continue
        with contextlib.suppress(OSError):  # a folder of another user's
            os.utime(path)
        _report(cache, source, report)
        return cache
    return None


def _made(
    source: _Source[S], key: str, folders: Sequence[Path], report: Callable[[str], None]
) -> SampleCache[S] | None:
    """Make the cache in the first folder that takes it; None where none does."""
    for folder in folders:
        path = folder / (key + _SUFFIX)
        try:
            with atomic_path(path, like=source.paths) as temporary:
                _write(temporary, source)
                _report(source.open(temporary, verify=False), source, report)
                if source.key() != key:
                    what = "the data changed while it was read"
                    raise UserError(Problem(", ".join(source.paths), what, "start again when it is complete"))
            _remove_unused(folder)
            return source.open(path, verify=False)
        except OSError as error:
            report(f"no data cache in {folder}: {error.strerror or error}")
    return None


def _write(path: Path, source: _Source[S]) -> None:
    write_cache(
        path,
        stream_samples(source.paths, source.templates, source.encoder),
        source.encoder.sample_type,
        source.paths,
        limit=source.encoder.max_seq_length,
        remarks_of=source.encoder.remarks,
        with_prefixes=source.with_prefixes,
    )


def _report(cache: SampleCache[S], source: _Source[S], report: Callable[[str], None]) -> None:
    for remark in cache.remarks:
        report(remark)
    report_lengths(cache.lengths(), source.encoder, source.max_dropped_share, report)


def _remove_unused(folder: Path) -> None:
    """Remove caches that no job has used for a month; the user's folder may hold files of the same ending."""
    oldest = time.time() - _KEPT_DAYS * 24 * 3600
    for path in folder.glob(f"{'[0-9a-f]' * 64}{_SUFFIX}"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < oldest:
                path.unlink()
