"""Whether a model's sizes divide over parallel ranks."""

from __future__ import annotations

from nemo_launcher.errors import Problem, UserError
from nemo_launcher.models.config import LayerShape


def check_division(shape: LayerShape, *, tensor: int, pipeline: int, stack: str = "model") -> None:
    """Raise UserError unless heads and feed-forward divide over `tensor` ranks and layers over `pipeline` stages."""
    divided = {
        "num_attention_heads": (shape.num_attention_heads, tensor, "tensor"),
        "num_query_groups": (shape.num_query_groups, tensor, "tensor"),
        "ffn_hidden_size": (shape.ffn_hidden_size, tensor, "tensor"),
        "num_layers": (shape.num_layers, pipeline, "pipeline"),
    }
    problems = [
        Problem(
            f"{kind}_model_parallel_size",
            f"{ranks} does not divide the {stack}'s {name} {size}",
            f"choose a {kind}_model_parallel_size that does",
        )
        for name, (size, ranks, kind) in divided.items()
        if size % ranks
    ]
    if problems:
        raise UserError(problems)
