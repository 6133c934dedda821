# SPDX-License-Identifier: Apache-2.0
"""What an adapter's archive says of its prompts, read once: templates, tokenisation, lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nemo_launcher.checkpoint.outline import is_peft
from nemo_launcher.data.prompt_encoder import PromptSettings
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.files.values import Section, entries, whole


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterPrompts:
    """How the prompts of an adapter are made."""

    settings: PromptSettings
    """How they become tokens."""
    encoder_seq_length: int | None
    """Tokens of a training sample; None: as many as the base takes."""
    decoder_seq_length: int | None
    """Tokens that NeMo's T5 generates."""
    nemo_compat: bool
    """Whether training followed NeMo to the letter."""
    task_templates: Sequence[Section]
    """The entries of its templates, unchecked (templates)."""
    train_ds: Sequence[object]
    """The names of its training files."""
    names_no_task: bool
    """Whether the form of the archive has no task names: its template is for all records."""

    @classmethod
    def read(cls, config: Section) -> AdapterPrompts:
        """Read an adapter's configuration; {} gives the defaults of a training."""
        data = config.get("data")
        data = data if isinstance(data, Mapping) else {}
        train_ds = data.get("train_ds")
        return cls(
            settings=PromptSettings.read(data),
            encoder_seq_length=whole(config, "encoder_seq_length"),
            decoder_seq_length=whole(config, "decoder_seq_length"),
            nemo_compat=bool(config.get("nemo_compat", False)),
            task_templates=entries(config, "task_templates"),
            train_ds=train_ds if isinstance(train_ds, Sequence) and not isinstance(train_ds, str) else (),
            names_no_task=is_peft(config),
        )

    def templates(self) -> list[TaskTemplate]:
        """Return its templates. Raises UserError for entries that are wrong."""
        return [TaskTemplate.from_config(entry) for entry in self.task_templates]
