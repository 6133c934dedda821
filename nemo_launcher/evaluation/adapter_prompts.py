# SPDX-License-Identifier: Apache-2.0
"""An adapter's settings for prompts, read once from its archive: templates, tokenisation, lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nemo_launcher.checkpoint.outline import is_peft
from nemo_launcher.data.prompt_encoder import PromptSettings
from nemo_launcher.data.records import columns_in
from nemo_launcher.data.templates import TaskTemplate
from nemo_launcher.files.values import Section, entries, whole


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterPrompts:
    """How an adapter's prompts are built."""

    settings: PromptSettings
    """The settings of tokenisation."""
    encoder_seq_length: int | None
    """Maximum tokens of a training sample; None for the base model's maximum."""
    decoder_seq_length: int | None
    """Number of tokens that NeMo's T5 generates."""
    nemo_compat: bool
    """Whether training used NeMo's exact arithmetic."""
    task_templates: Sequence[Section]
    """The unchecked entries of its templates; see `templates`."""
    train_ds: Sequence[object]
    """The names of its training files."""
    columns: Mapping[str, str]
    """The columns of renamed fields in its training files (data.records)."""
    names_no_task: bool
    """Whether the archive format has no task names, so that its template applies to all records."""

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
            columns=columns_in(data),
            names_no_task=is_peft(config),
        )

    def templates(self) -> list[TaskTemplate]:
        """Return the checked templates. Raises UserError for invalid entries."""
        return [TaskTemplate.from_config(entry) for entry in self.task_templates]
