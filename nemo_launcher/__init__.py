# SPDX-License-Identifier: Apache-2.0
"""Adapter Learning and IA3 for frozen Megatron GPT and T5 models, from a laptop to a cluster."""

__version__ = "0.2.0"

TYPE_CHECKING = False  # as in typing, whose import an interrupt at the start of a command could hit
if TYPE_CHECKING:
    from nemo_launcher.api.model import Generation, Model, Score
    from nemo_launcher.api.training import JobError, TrainingResult, train
    from nemo_launcher.errors import Problem, UserError
else:
    _HOMES = {
        "Generation": "api.model",
        "JobError": "api.training",
        "Model": "api.model",
        "Problem": "errors",
        "Score": "api.model",
        "TrainingResult": "api.training",
        "UserError": "errors",
        "train": "api.training",
    }

    def __getattr__(name: str) -> object:
        """Import a public name when it is first used: `import nemo_launcher` itself imports nothing."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


__all__ = ["Generation", "JobError", "Model", "Problem", "Score", "TrainingResult", "UserError", "__version__", "train"]
