# SPDX-License-Identifier: Apache-2.0
"""Cache of tokenized samples, mapped into memory by later jobs with the same data, templates and tokenizer.

A cache file is named by a hash of everything that its samples depend on. It is written under a temporary name and
renamed, so that concurrent jobs and ranks never see a partial file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Generic

from nemo_launcher import __version__
from nemo_launcher.data.cache_file import FORMAT, DamagedCacheError, SampleCache, open_cache, write_cache
from nemo_launcher.data.prompt_encoder import SampleEncoder
from nemo_launcher.data.prompts import encode_files, report_lengths, stream_samples
from nemo_launcher.data.record_streams import form_of
from nemo_launcher.data.samples import S
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.data.tokenizers import END_SENTINEL, FIRST_SENTINEL
from nemo_launcher.errors import Problem, UserError
from nemo_launcher.files.atomic import atomic_path
from nemo_launcher.files.digest import sha256_of
from nemo_launcher.runtime import ranks

FOLDER_NAME = ".nemo_launcher_cache"
_SUFFIX = ".samples"
_KEPT_DAYS = 30  # since the last use


def cache_folders(setting: str | bool | None, data_file: str | Path, results: str | Path) -> list[Path]:
    """Return the folders to search for caches; new ones are written to the first writable folder.

    setting: model.data.cache_dir; None: beside the data, or in `results` if that is unwritable; False: nowhere.
    """
    if setting is False:
        return []
    if setting is None:
        return [Path(data_file).parent / FOLDER_NAME, Path(results) / FOLDER_NAME]
    return [Path(str(setting))]


@dataclasses.dataclass(frozen=True, slots=True)
class _Source(Generic[S]):
    """Everything that samples are made from."""

    paths: Sequence[str]
    """The data files."""
    templates: Sequence[TaskTemplate]
    """The task templates."""
    encoder: SampleEncoder[S]
    """The encoder of records to samples."""
    max_dropped_share: float
    """The fraction of samples that may be dropped as too long."""
    with_prefixes: bool
    """Whether common prefixes are stored too."""
    columns: Mapping[str, str]
    """The columns of renamed fields (read_records)."""

    def open(self, path: Path, *, vocab_size: int | None = None, verify: bool = True) -> SampleCache[S]:
        """Map a cache file of these samples (cache_file.open_cache)."""
        limit, kind = self.encoder.max_seq_length, self.encoder.sample_type
        return open_cache(path, self.paths, limit, kind, vocab_size=vocab_size, verify=verify)

    def vocab_size(self) -> int:
        """Return the number of possible token ids, including special tokens beyond the tokenizer's vocabulary size."""
        tokenizer = self.encoder.tokenizer
        ids = [tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.unk_id, *tokenizer.special_ids]
        ids += [tokenizer.token_to_id(name) for name in (FIRST_SENTINEL, END_SENTINEL)]
        return max(tokenizer.vocab_size, *(1 + token for token in ids if token is not None))

    def key(self) -> str:
        """Return a hash of everything that the samples depend on."""
        encoder = self.encoder
        assert dataclasses.is_dataclass(encoder)
        settings = {field.name: getattr(encoder, field.name) for field in dataclasses.fields(encoder)}
        del settings["limited_by"]  # only for messages
        settings["tokenizer"] = [self.encoder.tokenizer.identity, str(getattr(self.encoder.tokenizer, "chat", None))]
        description = {
            "version": [FORMAT, __version__, sys.byteorder],
            "files": [[form_of(path).kind, sha256_of(path)] for path in self.paths],
            "columns": dict(self.columns),
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
    columns: Mapping[str, str] | None = None,
    report: Callable[[str], None] = print,
) -> Sequence[S]:
    """Return the samples of `encode_files`, without their records, from a cache, which is created if needed.

    folders: to search (cache_folders). with_prefixes: the cache also stores common prefixes. columns: as in
    `read_records`. If no folder is writable, or the tokenizer has no identity, the samples stay in memory.
    """
    source = _Source(paths, templates, encoder, max_dropped_share, with_prefixes, columns or {})
    with ranks.local_rank_zero_first():
        cache = _find_or_create(source, folders, report)
    if cache is not None:
        return cache
    return encode_files(paths, templates, encoder, max_dropped_share=max_dropped_share, columns=columns, report=report)


def _find_or_create(
    source: _Source[S], folders: Sequence[Path], report: Callable[[str], None]
) -> SampleCache[S] | None:
    if (
        not folders
        or source.encoder.tokenizer.identity is None
        or not all(Path(path).exists() for path in source.paths)
    ):
        return None
    key = source.key()
    return _find(source, key, folders, report) or _create(source, key, folders, report)


def _find(
    source: _Source[S], key: str, folders: Sequence[Path], report: Callable[[str], None]
) -> SampleCache[S] | None:
    for folder in folders:
        path = folder / (key + _SUFFIX)
        try:
            cache = source.open(path, vocab_size=source.vocab_size())
        except OSError:
            continue
        except DamagedCacheError:
            report(f"{path} is damaged; the data is tokenized again")
            continue
        with contextlib.suppress(OSError):  # another user's folder
            os.utime(path)
        _report(cache, source, report)
        return cache
    return None


def _create(
    source: _Source[S], key: str, folders: Sequence[Path], report: Callable[[str], None]
) -> SampleCache[S] | None:
    """Create the cache in the first writable folder; return None if there is none."""
    for folder in folders:
        path = folder / (key + _SUFFIX)
        try:
            with atomic_path(path, like=source.paths) as temporary:
                _write(temporary, source)
                _report(source.open(temporary, verify=False), source, report)
                if source.key() != key:
                    what = "the data changed while it was read"
                    raise UserError(Problem(", ".join(source.paths), what, "start again when it is complete"))
            remove_unused(folder, _SUFFIX)
            return source.open(path, verify=False)
        except OSError as error:
            report(f"no data cache in {folder}: {error.strerror or error}")
    return None


def _write(path: Path, source: _Source[S]) -> None:
    write_cache(
        path,
        stream_samples(source.paths, source.templates, source.encoder, columns=source.columns),
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


def remove_unused(folder: Path, suffix: str) -> None:
    """Remove caches that were not used for a month, but no other files of the user with the same suffix."""
    oldest = time.time() - _KEPT_DAYS * 24 * 3600
    for path in folder.glob(f"{'[0-9a-f]' * 64}{suffix}"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < oldest:
                path.unlink()
