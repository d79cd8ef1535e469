"""References in a study file -> networks, weights and model spaces.

A reference is ``torchvision:NAME``, ``package.module:factory`` or ``path/to/file.py:factory``. This is the
only file of the package that imports NNI, and only inside functions: the import costs seconds.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import pickle
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from autocompress.config import ModelSection
from autocompress.errors import ModelError
from autocompress.torchvision_compat import import_torchvision

_NAMES_SHOWN = 3
_SUFFIXES = (".safetensors", ".pt", ".pth")
_CHECKPOINT_KEYS = ("state_dict", "model")
ModelSpace = Any  # an nni.nas.nn.pytorch.ModelSpace, which is an nn.Module; NNI carries no types
_REFERENCE_FORMS = "torchvision:NAME, package.module:factory or path/to/file.py:factory"


def load_model(section: ModelSection, num_classes: int) -> nn.Module:
    """Build the network that ``[model]`` names, with random weights.

    Args:
        section: source and arguments; ``section.weights`` is left to :func:`load_weights`.
        num_classes: passed on to a factory that takes an argument of this name, unless the arguments set it.

    Raises:
        ModelError: the reference does not import, the factory fails or returns something else.
    """
    kind, _, name = section.source.partition(":")
    if kind == "torchvision":
        factory: Callable[..., Any] = _torchvision_factory(name)
        arguments = {"num_classes": num_classes, **section.arguments}
    else:
        factory = _load_factory(section.source)
        given = {"num_classes": num_classes} if _takes(factory, "num_classes") else {}
        arguments = given | section.arguments
    model = _call(factory, section.source, arguments)
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"a model factory returns a torch.nn.Module; {section.source} returned {type(model).__name__}; "
            "return the network"
        )
    return model


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
    # Checkpoints older than batch norm's step counter lack it; nothing here reads it.
    optional = {name for name in own if name.endswith("num_batches_tracked")}
    _refuse(path, "lack", [name for name in own if name not in state and name not in optional])
    _refuse(path, "have no place in the model for", [name for name in state if name not in own])
    differ = [
        f"{name} {list(value.shape)} for {list(own[name].shape)}"
        for name, value in state.items()
        if value.shape != own[name].shape
    ]
    _refuse(path, "have other shapes for", differ)
    broken = [name for name, value in state.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise ModelError(f"weights are finite numbers; {path} has NaN or infinity in {_some(broken)}; train it again")
    model.load_state_dict(own | state)


def _refuse(path: Path, verb: str, names: list[str]) -> None:
    if names:
        raise ModelError(
            f"weights fit the model name by name; those of {path} {verb} {_some(names)}; "
            "check model.source and its arguments"
        )


def _some(names: list[str]) -> str:
    more = ", ..." if len(names) > _NAMES_SHOWN else ""
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} ({', '.join(names[:_NAMES_SHOWN])}{more})"


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        content = _read_file(path)
    except pickle.UnpicklingError as error:
        raise ModelError(
            "a checkpoint holds tensors only, because unpickling anything else runs its code; "
            f"{path} holds more or is damaged; where you trust it, load the model yourself and write "
            "torch.save(model.state_dict(), FILE) or a .safetensors file"
        ) from error
    except Exception as error:  # each reader has its own ways to say that a file is damaged
        raise ModelError(f"weights must be readable; {path}: {_one_line(error)}; save the file again") from error
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


def weights_digest(module: nn.Module) -> str:
    """SHA-256 of all parameters and buffers, by name: dtypes, shapes and bytes; the same on every device."""
    return state_digest(module.state_dict())


def state_digest(state: Mapping[str, Tensor]) -> str:
    """:func:`weights_digest` of a module with this state."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# Model spaces


@cache
def import_nni() -> ModuleType:
    """``nni.nas.nn.pytorch``, imported without what it prints, warns and logs to standard output.

    A module that defines a model space and is not loaded by :func:`load_space` calls this first.
    """
    import_torchvision()
    with warnings.catch_warnings():
        # NNI wraps everything in torch.nn and warns of names that are younger than it and no modules.
        warnings.filterwarnings("ignore", message=".*found to be not a nn.Module", category=RuntimeWarning)
        layers = importlib.import_module("nni.nas.nn.pytorch")
    importlib.import_module("nni").silence_stdout()  # standard output is for tables and JSON
    return layers


def load_space(reference: str, arguments: Mapping[str, Any]) -> ModelSpace:
    """Build the NNI ``ModelSpace`` that a reference names.

    Args:
        reference: ``package.module:Class`` or ``path/to/file.py:Class``; any factory of a ModelSpace will do.
        arguments: what it is called with.

    Raises:
        ModelError: the reference does not import, the factory fails or returns no ModelSpace.
    """
    layers = import_nni()
    space = _call(_load_factory(reference), reference, dict(arguments))
    if not isinstance(space, layers.ModelSpace):
        raise ModelError(
            f"a model space is an nni.nas.nn.pytorch.ModelSpace; {reference} gave {type(space).__name__}; "
            "derive it from ModelSpace"
        )
    return space


def space_labels(space: ModelSpace) -> dict[str, list[Any]]:
    """Options of each labelled choice of a model space, in the order of its modules.

    Raises:
        ModelError: a choice that is not one of a list of strings, numbers and booleans.
    """
    import_nni()
    from nni.mutable import Categorical

    labels: dict[str, list[Any]] = {}
    for label, choice in space.simplify().items():
        if not isinstance(choice, Categorical):
            raise ModelError(
                f"a model space consists of choices from lists; {label} is a {type(choice).__name__}; "
                "write it as nni.choice(label, [...])"
            )
        odd = [value for value in choice.values if not isinstance(value, str | int | float | bool)]
        if odd:
            raise ModelError(
                f"options are strings, numbers or booleans; {label} has {odd[0]!r}; "
                "name the options and map the names inside the space"
            )
        labels[label] = list(choice.values)
    return labels


class _AskedSample(dict[str, Any]):
    """A sample that asks for a label's value when NNI first looks for the label."""

    def __init__(self, labels: Mapping[str, list[Any]], choose: Callable[[str, list[Any]], Any]) -> None:
        super().__init__()
        self._labels = labels
        self._choose = choose

    def __contains__(self, label: object) -> bool:
        if isinstance(label, str) and label in self._labels and not super().__contains__(label):
            self[label] = self._choose(label, list(self._labels[label]))
        return super().__contains__(label)


def freeze(space: ModelSpace, choose: Callable[[str, list[Any]], Any]) -> tuple[nn.Module, dict[str, Any]]:
    """Build one member of a model space, with random weights (from torch's global generator).

    Args:
        space: what :func:`load_space` returned; it is not changed.
        choose: (label, options) -> option. Asked once for each label that this member uses, and for no other:
            the choices inside a block beyond the chosen depth are never asked.

    Returns:
        The member, and the choices that define it: ``lambda label, _: choices[label]`` gives it again.

    Raises:
        ModelError: an answer that is not among the options, or a space that cannot build the member.
    """
    sample = _AskedSample(space_labels(space), choose)
    # NNI's own validity check walks the member exactly as freeze() does, without building it.
    problem = space.check_contains(sample)
    choices = dict(sample)
    if problem is not None:
        raise ModelError(f"a choice is one of its label's options; {_one_line(problem)}; correct the choices {choices}")
    member = _call(lambda: space.freeze(dict(choices)), f"member {choices}", {})
    assert isinstance(member, nn.Module)
    return member, choices


# References


def _torchvision_factory(name: str) -> Callable[..., nn.Module]:
    models = import_torchvision().models
    known = models.list_models(module=models)
    if name not in known:
        raise ModelError(
            f"torchvision:NAME is a classifier of torchvision; it has no {name!r}; {_suggest(name, known)}"
        )

    def build(**arguments: Any) -> nn.Module:
        model: nn.Module = models.get_model(name, weights=None, **arguments)
        return model

    return build


def _load_factory(reference: str) -> Callable[..., Any]:
    place, _, attribute = reference.rpartition(":")
    if not place or not attribute:
        raise ModelError(f"a reference is {_REFERENCE_FORMS}; got {reference!r}; add what is missing")
    try:
        module = _module_from_file(Path(place)) if place.endswith(".py") else _module_by_name(place)
        factory = getattr(module, attribute, None)
    except ModelError:
        raise
    except Exception as error:  # the user's module may raise anything while it is imported
        raise ModelError(
            f"{place} must import; {type(error).__name__}: {_one_line(error)}; correct the name or the module"
        ) from error
    if factory is None:
        near = _suggest(attribute, _public_names(module))
        raise ModelError(f"a reference names a factory of its module; {place} has no {attribute!r}; {near}")
    if not callable(factory):
        raise ModelError(
            f"a reference names a function or class; {reference} is of type {type(factory).__name__}; "
            "name what builds the network"
        )
    found: Callable[..., Any] = factory
    return found


def _module_by_name(name: str) -> ModuleType:
    _make_importable(Path.cwd())
    return importlib.import_module(name)


def _module_from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ModelError(f"path/to/file.py:factory names a file; {path} does not exist; correct the path")
    path = path.resolve()
    # The digest keeps files of one name apart; one module per file keeps its classes the same.
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    _make_importable(path.parent)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _make_importable(folder: Path) -> None:
    # Last, so that nothing in the folder takes the place of an installed module.
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _takes(factory: Callable[..., Any], argument: str) -> bool:
    try:
        return argument in inspect.signature(factory).parameters
    except (TypeError, ValueError):  # some builtins have no signature
        return False


def _call(factory: Callable[..., Any], what: str, arguments: dict[str, Any]) -> Any:
    try:
        return factory(**arguments)
    except Exception as error:  # the user's factory may raise anything
        raise ModelError(
            f"{what} must build; called with {arguments} it raised {type(error).__name__}: "
            f"{_one_line(error)}; correct its arguments or its code"
        ) from error


def _public_names(module: ModuleType) -> list[str]:
    names = {*dir(module), *getattr(module, "__all__", ())}
    return sorted(name for name in names if not name.startswith("_"))


def _suggest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]}?" if near else "check the name"


def _one_line(error: BaseException, limit: int = 300) -> str:
    """The message of an exception on one line of at most ``limit`` characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
