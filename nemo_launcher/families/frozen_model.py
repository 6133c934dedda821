# SPDX-License-Identifier: Apache-2.0
"""What the frozen model of every family is."""

from __future__ import annotations

import abc

from megatron.core.transformer.module import MegatronModule


class FrozenModel(MegatronModule, abc.ABC):
    """A model whose parameters never train; `Family.run` knows how to call it."""

    @property
    @abc.abstractmethod
    def names_in_checkpoint(self) -> dict[str, str]:
        """Parameters that a checkpoint holds under another name: ours -> its name there."""
