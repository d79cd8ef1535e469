"""Weights: read from files, found fit for a model, and identified by a digest."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from autocompress.errors import ModelError
from autocompress.reference import one_line

_NAMES_SHOWN = 3
_SUFFIXES = (".safetensors", ".pt", ".pth")
_CHECKPOINT_KEYS = ("state_dict", "model")


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Put the weights of a file into ``model``, in place; a file that does not fit leaves it as it was.

    Args:
        model: parameters and buffers of any dtype; values are converted to it.
        path: .safetensors, or .pt/.pth with a state_dict, bare or under the key ``state_dict`` or ``model``.

    Raises:
        ModelError: missing or unreadable file, pickled code, names or shapes that do not fit, NaN.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"model.weights names a file; {path} does not exist; correct the path")
    if path.suffix not in _SUFFIXES:
        raise ModelError(f"weights end in {', '.join(_SUFFIXES)}; got {path.name}; save the state_dict as one of these")
    state = _read_state(path)
    own = model.state_dict()
    optional = _optional(own, state)
    _refuse(path, "lack", [name for name in own if name not in state and name not in optional])
    _refuse(path, "have no place in the model for", [name for name in state if name not in own])
    differ = [
        f"{name} {list(value.shape)} for {list(own[name].shape)}"
        for name, value in state.items()
        if value.shape != own[name].shape
    ]
    _refuse(path, "have other shapes for", differ)
    broken = _not_finite(state, masks=set(dict(model.named_buffers())))
    if broken:
        raise ModelError(
            f"weights are finite numbers; {path} has NaN or infinity in {some_tensors(broken)}; train it again"
        )
    model.load_state_dict(own | state)


def _optional(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> set[str]:
    """Names that a file may lack: batch norm's step counter, which old files do, and other names of one tensor."""
    present = {own[name].data_ptr() for name in given if name in own}
    return {name for name, x in own.items() if name.endswith("num_batches_tracked") or x.data_ptr() in present}


def _refuse(path: Path, verb: str, names: list[str]) -> None:
    if names:
        raise ModelError(
            f"weights fit the model name by name; those of {path} {verb} {some_tensors(names)}; "
            "check model.source and its arguments"
        )


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        content = _read_file(path)
    except pickle.UnpicklingError as error:
        raise only_tensors(path) from error
    except Exception as error:  # each reader has its own ways to say that a file is damaged
        raise ModelError(f"weights must be readable; {path}: {one_line(error)}; save the file again") from error
    for key in _CHECKPOINT_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ModelError(
            f"weights are a state_dict (name -> tensor); {path} holds {_outline(content)}; save model.state_dict()"
        )
    return dict(content)


def _read_file(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _outline(content: object) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    key, value = next(item for item in content.items() if not isinstance(item[1], Tensor))
    return f"a dictionary with {key!r} of type {type(value).__name__}"


def check_finite(model: nn.Module, what: str) -> None:
    """Refuse a network whose weights are no numbers; a buffer may hold minus infinity, as masks do.

    Args:
        model: on any device.
        what: where it came from, for the message.

    Raises:
        ModelError: parameters without values, NaN or infinity.
    """
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    empty = [name for name, value in (parameters | buffers).items() if is_lazy(value) or value.is_meta]
    if empty:
        raise ModelError(
            f"a network has values in all its tensors; {what} has none in {some_tensors(empty)}; "
            "build it without lazy modules and not on the meta device"
        )
    broken = _not_finite(parameters | buffers, masks=buffers)
    if broken:
        raise ModelError(
            f"weights are finite numbers; {what} has NaN or infinity in {some_tensors(broken)}; "
            "correct it or train it again"
        )


def _not_finite(values: Mapping[str, Tensor], masks: Collection[str]) -> list[str]:
    """Names of the tensors that have NaN or infinity; those of ``masks`` may have minus infinity."""
    return [
        name
        for name, value in values.items()
        if not bool(torch.isfinite(value.masked_fill(value == -torch.inf, 0) if name in masks else value).all())
    ]


def some_tensors(names: list[str]) -> str:
    """How many tensors these are, with the names of the first."""
    more = ", ..." if len(names) > _NAMES_SHOWN else ""
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} ({', '.join(names[:_NAMES_SHOWN])}{more})"


def only_tensors(path: Path) -> ModelError:
    """The error of a checkpoint that is a pickle with more than tensors in it."""
    return ModelError(
        "a checkpoint holds tensors only, because unpickling anything else runs its code; "
        f"{path} holds more or is damaged; where you trust it, load the model yourself and write "
        "torch.save(model.state_dict(), FILE) or a .safetensors file"
    )


def weights_digest(module: nn.Module) -> str:
    """SHA-256 of all parameters and buffers, by name: dtypes, shapes and bytes; the same on every device."""
    return state_digest(module.state_dict())


def state_digest(state: Mapping[str, Tensor]) -> str:
    """:func:`weights_digest` of a module with this state."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        hash_tensor_(digest, value)
    return digest.hexdigest()


def hash_tensor_(digest: hashlib._Hash, tensor: Tensor) -> None:
    """Feed the bytes of a tensor to a digest."""
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
