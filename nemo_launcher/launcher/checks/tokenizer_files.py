# SPDX-License-Identifier: Apache-2.0
"""The files of a base's tokenizer, as far as they can be read at launch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nemo_launcher.checkpoint.archive import Archive
from nemo_launcher.data.tokenizer_kinds import folder_inside
from nemo_launcher.errors import UserError
from nemo_launcher.files.foreign import MAX_TEXT_BYTES, read_bytes
from nemo_launcher.files.values import below
from nemo_launcher.launcher.probe import LaunchProbe
from nemo_launcher.launcher.stage import Stage
from nemo_launcher.launcher.stages import Conversion, Learning


def tokenizer_files(
    stage: Learning, earlier: Sequence[Stage], probe: LaunchProbe, names: Sequence[str]
) -> dict[str, bytes] | None:
    """Return the content of those files of a Hugging Face tokenizer that the base has; {} for another kind.

    None if they are unknown: the base is absent, too slow to unpack or made of a GGUF file, or its tokenizer lies
    outside it. A base that an earlier stage converts has the files of its source.
    """
    base = Path(stage.section.model.language_model_path)
    converted = (other for other in earlier if isinstance(other, Conversion))
    source = next((other.source for other in converted if base in other.outputs()), None)
    try:
        return _of_archive(base, probe, names) if source is None else _of_folder(source, names)
    except (OSError, UserError):  # reported by the checks of models
        return None


def _of_folder(source: Path, names: Sequence[str]) -> dict[str, bytes] | None:
    if not source.is_dir():
        return None
    return {name: read_bytes(source / name) for name in names if (source / name).is_file()}


def _of_archive(base: Path, probe: LaunchProbe, names: Sequence[str]) -> dict[str, bytes] | None:
    outline = probe.known_outline(base)
    if outline is None or outline.sizes is None:  # absent, or too slow to unpack
        return None
    section = below(outline.config, "tokenizer")
    if section.get("library") != "huggingface":
        return {}
    folder = folder_inside(section)
    if not any(name.startswith(f"{folder}/") for name in outline.sizes):
        return None
    with Archive(base) as archive:
        members = {name: f"{folder}/{name}" for name in names}
        return {
            name: archive.read(member, MAX_TEXT_BYTES) for name, member in members.items() if member in archive.names
        }
