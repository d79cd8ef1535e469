"""What counts as a weight layer, and how networks are traced: the shared vocabulary of all stages."""

from __future__ import annotations

import torch.fx
from torch import Tensor, nn

from autocompress.errors import ModelError, first_line

WEIGHT_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)


def weight_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Convolutions and linear layers by their name in ``model``, in order of registration."""
    return {name: module for name, module in model.named_modules() if isinstance(module, WEIGHT_LAYERS)}


def classifier_name(model: nn.Module) -> str | None:
    """Name of the last linear layer, whose input serves as the feature of hint losses; None without one."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return names[-1] if names else None


def trace(model: nn.Module) -> torch.fx.GraphModule:
    """Symbolic trace that keeps the module names.

    Raises:
        ModelError: the forward function cannot be traced.
    """
    try:
        return torch.fx.symbolic_trace(model)
    except Exception as error:
        raise ModelError(
            f"a model must be traceable by torch.fx; {type(model).__name__}: {first_line(error)}; "
            "remove control flow that depends on tensor values"
        ) from error


def parameter_count(model: nn.Module) -> int:
    """Number of scalar parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def call(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """The model's output for a tuple of inputs."""
    output: Tensor = model(*inputs)
    return output
