"""References in a study file -> networks and model spaces.

A network is ``torchvision:NAME``, ``timm:NAME``, ``hf:FOLDER``, ``package.module:factory`` or
``path/to/file.py:factory``. This is the only file of the package that imports NNI, and only inside functions:
the import costs seconds.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from types import ModuleType
from typing import Any

from torch import nn

from autocompress.config import ModelSection
from autocompress.errors import ModelError
from autocompress.reference import load_callable, one_line, suggest
from autocompress.torchvision_compat import import_torchvision
from autocompress.transformers_source import LoadedModel, import_extra, load_transformers, tokenizer_folder
from autocompress.weights import check_finite, load_weights, state_digest, weights_digest

__all__ = [
    "LoadedModel",
    "ModelSpace",
    "check_finite",
    "freeze",
    "import_nni",
    "load_base",
    "load_model",
    "load_space",
    "load_weights",
    "space_labels",
    "state_digest",
    "tokenizer_folder",
    "weights_digest",
]

ModelSpace = Any  # an nni.nas.nn.pytorch.ModelSpace, which is an nn.Module; NNI carries no types
_SOURCE_FORMS = "torchvision:NAME, timm:NAME, hf:FOLDER, package.module:factory or path/to/file.py:factory"
# Arguments that would download weights, or read them behind the back of load_weights.
_BRING_WEIGHTS = {
    "torchvision": {"weights", "weights_backbone"},
    "timm": {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"},
}


def load_base(section: ModelSection, num_classes: int) -> LoadedModel:
    """Build the network that ``[model]`` names, with the weights of its source and of ``section.weights``.

    What is new is drawn from torch's global generator, as it is at the call.

    Args:
        section: source, arguments and weights.
        num_classes: as for :func:`load_model`.

    Raises:
        ModelError: as for :func:`load_model` and :func:`load_weights`.
    """
    loaded = _build(section, num_classes)
    if section.weights is not None:
        load_weights(loaded.module, section.weights)
        loaded = LoadedModel(loaded.module, "whole")
    check_finite(loaded.module, section.source)
    return loaded


def load_model(section: ModelSection, num_classes: int) -> nn.Module:
    """Build the network that ``[model]`` names, without ``section.weights``.

    Args:
        section: source and arguments; the weights of a Transformers folder are part of the source.
        num_classes: passed on to a factory that takes an argument of this name, unless the arguments set it;
            0 for a task without classes, whose networks have the outputs that the arguments say.

    Raises:
        ModelError: the reference does not import, the factory fails or returns something else, or the
            network has weights that are not finite.
    """
    module = _build(section, num_classes).module
    check_finite(module, section.source)
    return module


def _build(section: ModelSection, num_classes: int) -> LoadedModel:
    kind, colon, name = section.source.partition(":")
    if not colon:
        raise ModelError(f"a model source is {_SOURCE_FORMS}; got {section.source!r}; add what is missing")
    if kind == "hf":
        return load_transformers(section, num_classes)
    factory, takes_classes = _factory(section, kind, name)
    given = {"num_classes": num_classes} if takes_classes and num_classes else {}
    return LoadedModel(_network(_call(factory, section.source, given | section.arguments), section.source))


def _factory(section: ModelSection, kind: str, name: str) -> tuple[Callable[..., Any], bool]:
    """What builds the network, and whether it takes ``num_classes``."""
    libraries = {"torchvision": _torchvision_factory, "timm": _timm_factory}
    if kind not in libraries:
        factory = load_callable(section.source, ModelError)
        return factory, _takes(factory, "num_classes")
    bring_weights = sorted(_BRING_WEIGHTS[kind] & section.arguments.keys())
    if bring_weights:
        raise ModelError(
            f"model.arguments shape a network and bring no weights; {section.source} has {bring_weights[0]!r}; "
            "leave it out, and name a file in model.weights where you have one"
        )
    return libraries[kind](name), True


def _network(model: object, source: str) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"a model factory returns a torch.nn.Module; {source} returned {type(model).__name__}; return the network"
        )
    return model


def _torchvision_factory(name: str) -> Callable[..., nn.Module]:
    models = import_torchvision().models
    known = models.list_models(module=models)
    if name not in known:
        raise ModelError(f"torchvision:NAME is a classifier of torchvision; it has no {name!r}; {suggest(name, known)}")

    def build(**arguments: Any) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of initialisations that will change one day
            model: nn.Module = models.get_model(name, weights=None, **arguments)
        return model

    return build


def _timm_factory(name: str) -> Callable[..., nn.Module]:
    timm = import_extra("timm")
    known = [*timm.list_models(), *timm.list_pretrained()]  # the latter with tags, as in resnet18.a1_in1k
    if name not in known:
        raise ModelError(f"timm:NAME is a network of timm; it has no {name!r}; {suggest(name, known)}")

    def build(**arguments: Any) -> nn.Module:
        model: nn.Module = timm.create_model(name, pretrained=False, **arguments)
        return model

    return build


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
            f"{one_line(error)}; correct its arguments or its code"
        ) from error


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
    space = _call(load_callable(reference, ModelError, "the model space"), reference, dict(arguments))
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
        raise ModelError(f"a choice is one of its label's options; {one_line(problem)}; correct the choices {choices}")
    member = _call(lambda: space.freeze(dict(choices)), f"member {choices}", {})
    assert isinstance(member, nn.Module)
    return member, choices
