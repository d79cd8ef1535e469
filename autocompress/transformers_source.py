"""``hf:FOLDER``: networks of Transformers, with the weights and the tokenizer that lie in their folder.

Nothing is downloaded and no code of a folder runs. The import of Transformers costs seconds, so it happens
inside functions.
"""

from __future__ import annotations

import importlib
import pickle
import re
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from autocompress.config import ModelSection
from autocompress.errors import ConfigError, ModelError
from autocompress.reference import one_line, suggest
from autocompress.resource_folder import PACKAGE_PREFIX, resource_folder
from autocompress.torchvision_compat import import_torchvision
from autocompress.weights import only_tensors, some_tensors

PREFIX = "hf:"
_AUTO_CLASS = "AutoModelForSequenceClassification"
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_UNREAD_WEIGHTS = (".bin", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".pt", ".pth", ".safetensors")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model")
_MOST = 0.5  # of a network's tensors: with more of them missing, the weights are another network's
_T = TypeVar("_T")


@dataclass(frozen=True)
class LoadedModel:
    """A network and how many of its weights came with it.

    Attributes:
        pretrained: ``whole``: all of them, from the source or from ``model.weights``; ``partly``: all but
            ``new``; ``none``: they are random, or a factory's own, of which nothing is known.
        new: names of the tensors that are random though weights came with the source: as a rule the
            classification head, which must be trained.
    """

    module: nn.Module
    pretrained: Literal["none", "partly", "whole"] = "none"
    new: tuple[str, ...] = ()


_EXTRAS = {"transformers": "text"}


def import_extra(package: str) -> ModuleType:
    """A package of an extra of autocompress, such as timm, that itself imports torchvision.

    Raises:
        ModelError: it is not installed.
    """
    import_torchvision()
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ModelError(
            f"this model.source needs the package {package}; {one_line(error)}; "
            f'install it with pip install "autocompress[{_EXTRAS.get(package, package)}]"'
        ) from error


@cache
def import_transformers() -> ModuleType:
    """``transformers``, without its progress bars, load reports and warnings.

    Raises:
        ModelError: it is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = import_extra("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


# Folders


def tokenizer_folder(section: ModelSection) -> str | None:
    """What ``data.tokenizer`` is where the study does not say it: the model's folder, if it has a tokenizer.

    Returns:
        The folder as the study names it (``package:NAME/sub/folder`` stays so), or that in the hub's cache.

    Raises:
        ModelError: ``hf:FOLDER`` names no folder of Transformers.
    """
    if not section.source.startswith(PREFIX):
        return None
    text = section.source.removeprefix(PREFIX)
    folder = _folder(text)
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return None
    return str(folder) if _is_hub_name(text) else text


def _folder(text: str) -> Path:
    """The folder of ``hf:TEXT``: a path, inside an installed package, or in the hub's cache."""
    try:
        folder = _cached_snapshot(text) if _is_hub_name(text) else resource_folder(text)
    except ConfigError as error:
        raise ModelError(str(error)) from error
    if not text or not (folder / "config.json").is_file():
        raise ModelError(
            f"hf:FOLDER is what save_pretrained wrote, with a config.json; {text or 'nothing'} has none; correct the path"
        )
    return folder


def _is_hub_name(text: str) -> bool:
    return not text.startswith(PACKAGE_PREFIX) and not Path(text).is_dir() and bool(_HUB_NAME.fullmatch(text))


def _cached_snapshot(name: str) -> Path:
    import_transformers()
    hub = importlib.import_module("huggingface_hub")
    try:
        return Path(hub.snapshot_download(name, local_files_only=True))
    except Exception as error:  # the hub has errors of its own for bad names and for what it does not hold
        raise ModelError(
            f"hf:FOLDER is a folder; {name} is none and needs the hub, which is not asked, and is not cached; "
            "download the folder first and give its path"
        ) from error


def _has_weights(folder: Path, text: str) -> bool:
    if any((folder / name).is_file() for name in _WEIGHTS):
        return True
    if _is_hub_name(text):
        raise ModelError(
            f"hf:FOLDER is a folder; {text} needs the hub, and its weights are not cached; "
            "download the folder first and give its path"
        )
    unread = sorted(path.name for path in folder.iterdir() if path.suffix in _UNREAD_WEIGHTS)
    if unread:
        raise ModelError(
            f"weights of Transformers are model.safetensors or pytorch_model.bin; {folder} has {unread[0]}; "
            "save the model again with save_pretrained"
        )
    return False


# Networks


def load_transformers(section: ModelSection, num_classes: int) -> LoadedModel:
    """Build the network of ``hf:FOLDER`` in float32, with the weights of the folder where it has some.

    Args:
        section: ``arguments`` are values of its configuration; ``auto_class`` chooses another class than
            ``AutoModelForSequenceClassification``; ``ignore_mismatched_sizes`` allows new tensors in place of
            those with other shapes.
        num_classes: its ``num_labels``, unless the arguments set it; 0 leaves those of the folder.

    Raises:
        ModelError: no such folder, or one whose configuration or weights cannot be loaded or do not fit.
    """
    text = section.source.removeprefix(PREFIX)
    folder = _folder(text)
    arguments = ({"num_labels": num_classes} if num_classes else {}) | section.arguments
    name, new_shapes = arguments.pop("auto_class", _AUTO_CLASS), arguments.pop("ignore_mismatched_sizes", False)
    auto = _auto_class(name)
    config = _configuration(folder, arguments)
    if not _has_weights(folder, text):
        return LoadedModel(_attempt(folder, lambda: auto.from_config(config, trust_remote_code=False)).float())
    module, found = _attempt(folder, lambda: _with_weights(auto, folder, config))
    new = _new_tensors(folder, found, bool(new_shapes))
    _check_mostly_loaded(folder, module, new)
    return LoadedModel(module, "partly" if new else "whole", new)


def _auto_class(name: object) -> Any:
    transformers = import_transformers()
    known = [each for each in dir(transformers) if each.startswith("AutoModel")]
    if name not in known:
        raise ModelError(
            f"auto_class is an Auto class of Transformers; it has no {name!r}; {suggest(str(name), known)}"
        )
    return getattr(transformers, str(name))


def _configuration(folder: Path, arguments: Mapping[str, Any]) -> Any:
    config = _attempt(folder, lambda: _read_configuration(folder, {}))
    known = {*config.to_dict(), "num_labels", "attn_implementation"}
    unknown = [name for name in arguments if name not in known]
    if unknown:
        raise ModelError(
            "arguments of hf:FOLDER are auto_class, ignore_mismatched_sizes and values of its config.json; "
            f"{type(config).__name__} has no {unknown[0]!r}; {suggest(unknown[0], known)}"
        )
    config = _attempt(folder, lambda: _read_configuration(folder, arguments))
    if hasattr(config, "use_cache"):
        config.use_cache = False  # of keys and values, which only the generation of text needs
    return config


def _read_configuration(folder: Path, arguments: Mapping[str, Any]) -> Any:
    auto = import_transformers().AutoConfig
    return auto.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False, **arguments)


def _with_weights(auto: Any, folder: Path, config: Any) -> tuple[nn.Module, dict[str, Any]]:
    """The network in float32, whatever the folder's type, and which tensors did not come from the folder."""
    module, found = auto.from_pretrained(
        str(folder),
        config=config,
        dtype=torch.float32,
        local_files_only=True,
        trust_remote_code=False,
        weights_only=True,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    return module, found


def _attempt(folder: Path, action: Callable[[], _T]) -> _T:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return action()
    except pickle.UnpicklingError as error:
        raise only_tensors(folder) from error
    except Exception as error:  # Transformers may raise anything over what lies in a folder
        raise ModelError(
            f"a folder of Transformers must load; {folder}: {type(error).__name__}: {one_line(error)}; "
            "correct model.arguments or save the model again with save_pretrained"
        ) from error


def _new_tensors(folder: Path, found: Mapping[str, Any], new_shapes: bool) -> tuple[str, ...]:
    differ = {name: f"{name} {list(theirs)} for {list(own)}" for name, theirs, own in found["mismatched_keys"]}
    if differ and not new_shapes:
        raise ModelError(
            f"weights fit the model; those of {folder} have other shapes for {some_tensors(sorted(differ.values()))}; "
            "check the classes of the data, or set arguments = {ignore_mismatched_sizes = true} for new ones"
        )
    return tuple(sorted({*found["missing_keys"], *differ}))


def _check_mostly_loaded(folder: Path, module: nn.Module, new: Collection[str]) -> None:
    own = len(module.state_dict())
    if len(new) > _MOST * own:
        raise ModelError(
            f"weights fit the model name by name; those of {folder} lack {some_tensors(list(new))} of {own}; "
            "check that weights and config.json belong together, or set auto_class in model.arguments"
        )
