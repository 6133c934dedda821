# SPDX-License-Identifier: Apache-2.0
"""A loaded base model, optionally with an adapter, and its prompts; shared by the console verbs."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import DictConfig

from nemo_launcher.adapters.archive import open_adapter
from nemo_launcher.adapters.injection import AdapterSet
from nemo_launcher.data.given_records import source_of
from nemo_launcher.data.prompt_encoder import SampleEncoder
from nemo_launcher.data.prompts import encode_files
from nemo_launcher.data.record_forms import told
from nemo_launcher.data.samples import Sample
from nemo_launcher.evaluation.adapter_prompts import AdapterPrompts
from nemo_launcher.evaluation.prompt_settings import parse_settings, templates_of, with_settings
from nemo_launcher.evaluation.sampling import Request
from nemo_launcher.families.base import Base, load_base
from nemo_launcher.files.values import Section, below
from nemo_launcher.megatron.fused import set_fused
from nemo_launcher.megatron.fused_check import can_fuse
from nemo_launcher.runtime.precision import computed_dtype


@dataclass(frozen=True, slots=True)
class Session:
    """A base model that is ready to use."""

    base: Base
    """The base model, including the adapter if there is one."""
    prompts: AdapterPrompts
    """The prompt settings of the adapter, or a training's defaults without one, as changed by --set."""
    inference: Section
    """The keys of the `inference` section that are given by --set."""
    overrides: DictConfig
    """The keys of the adapter's configuration that --set changes."""
    adapters: AdapterSet | None = None
    """The adapter; None for the base model alone."""

    @classmethod
    def open(cls, base: str | Path, adapter: str | Path | None, *, precision: str, settings: Sequence[str]) -> Session:
        """Load the files. settings: `key=value` texts with keys of the adapter's configuration.

        Raises UserError for unreadable files, an adapter of another base and unknown keys.
        """
        dtype, overrides = computed_dtype(precision, "--precision"), parse_settings(settings)
        loaded = load_base(base, dtype=dtype)
        set_fused(loaded.model, can_fuse(loaded.device, loaded.dtype))
        return cls._with(loaded, adapter, overrides)

    def with_adapter(self, adapter: str | Path | None) -> Session:
        """Return the session that replaces this one, with another adapter in the same base or with none.

        Raises UserError, with this session still usable, if the file is unreadable or of another base.
        """
        return self._with(self.base, adapter, self.overrides, replaced=self.adapters)

    @classmethod
    def _with(
        cls, base: Base, adapter: str | Path | None, overrides: DictConfig, replaced: AdapterSet | None = None
    ) -> Session:
        adapters, config = open_adapter(adapter, base) if adapter is not None else (None, {})
        merged = with_settings(config, overrides)
        session = cls(base, AdapterPrompts.read(merged), below(merged, "inference"), overrides, adapters)
        if replaced is not None:
            replaced.detach()
        if adapters is not None:
            adapters.attach()
        return session

    def encoder(self, request: Request | None = None) -> SampleEncoder[Sample]:
        """Return the family's prompt encoder, for training samples or for the prompts of a request."""
        return self.base.family.prompt_encoder(
            self.base.tokenizer,
            self.base.shape,
            self.prompts.settings,
            encoder_seq_length=self.prompts.encoder_seq_length if request is None else None,
            nemo_compat=self.prompts.nemo_compat,
            tokens_to_generate=None if request is None else request.sampling.tokens_to_generate,
            add_bos=None if request is None else request.add_bos,
        )

    def effective(self, request: Request) -> Request:
        """Return the effective request: --set overrides the options, and NeMo compatibility overrides both."""
        request = request.changed(self.inference)
        if not self.prompts.nemo_compat:
            return request
        length = self.base.family.nemo_length(self.prompts.decoder_seq_length)
        return replace(request, sampling=request.sampling.as_nemo(length))

    def samples(
        self,
        records: str | Path | Sequence[Mapping[str, object]],
        template: str | None,
        answer_field: str | None,
        encoder: SampleEncoder[Sample],
    ) -> list[Sample]:
        """Return the samples of a data file, or of records in memory, in order.

        template, answer_field: a prompt template and its answer's field; None for the adapter's task_templates,
        chosen by each record's taskname, which is optional if there is only one template. Without an adapter and a
        template, those of record_forms are assumed. Raises UserError for records that do not fit the template, and for
        prompts that are too long.
        """
        source = source_of(records)
        templates = templates_of(self.prompts, template, answer_field, [source])
        if template is None and not self.prompts.task_templates:
            print(told(assumed.taskname for assumed in templates), file=sys.stderr)
        default = templates[0].taskname if len(templates) == 1 else None
        return encode_files(
            [source],
            templates,
            encoder,
            max_dropped_share=None,
            default_taskname=default,
            any_taskname=template is not None or self.prompts.names_no_task,
            columns=self.prompts.columns,
            report=lambda remark: print(remark, file=sys.stderr),  # standard output is only for results
        )
