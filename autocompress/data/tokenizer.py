"""The tokeniser of a model's folder: texts -> token ids and masks."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from autocompress.data.optional import optional_library
from autocompress.errors import ConfigError, DataError
from autocompress.reference import one_line
from autocompress.resource_folder import PACKAGE_PREFIX, resource_folder
from autocompress.torchvision_compat import import_torchvision

IDS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"
LEAST_TOKENS = 2  # exporters take a length of 0 or 1 for a constant
_FILE = "tokenizer.json"
_STORED = {IDS: torch.int32, MASK: torch.uint8, TYPES: torch.uint8}


@dataclass(frozen=True)
class Tokenizer:
    """A tokeniser and what is done with it.

    Attributes:
        library: a tokeniser of the library transformers.
        name: the name of its folder, or ``package:NAME/...``; no path of this machine.
        sha256: of its ``tokenizer.json``; None where it has none.
        max_length: tokens that a text, or a pair of them, is cut to.
    """

    library: Any
    name: str
    sha256: str | None
    max_length: int

    @property
    def pad_id(self) -> int:
        """Id of the padding, which the mask hides; 0 where the tokeniser has none."""
        return int(self.library.pad_token_id or 0)

    def input_names(self, pairs: bool) -> tuple[str, ...]:
        """What a model gets; the types tell the texts of a pair apart, for the models that take them."""
        return (IDS, MASK, TYPES) if pairs and TYPES in self.library.model_input_names else (IDS, MASK)

    def encode(self, columns: Sequence[list[str]]) -> tuple[Tensor, ...]:
        """One or two columns of n texts -> each of the inputs (n, longest), padded at the end.

        Ids are int32, masks and types uint8.
        """
        names = self.input_names(pairs=len(columns) > 1)
        with _quiet():
            encoded = self.library(
                *columns, truncation=True, max_length=self.max_length, return_token_type_ids=TYPES in names
            )
        padding = {IDS: self.pad_id, MASK: 0, TYPES: 0}
        inputs = {name: _padded(encoded[name], _STORED[name], padding[name]) for name in names}
        inputs[MASK][:, 0] = 1  # attention divides by 0 where nothing is left of a text
        return tuple(inputs.values())


def _padded(rows: Sequence[list[int]], dtype: torch.dtype, value: int) -> Tensor:
    padded = pad_sequence([torch.tensor(row, dtype=dtype) for row in rows], batch_first=True, padding_value=value)
    short = max(0, LEAST_TOKENS - padded.shape[1])
    return torch.nn.functional.pad(padded, (0, short), value=value)


def load_tokenizer(folder: str | None, max_length: int) -> Tokenizer:
    """The tokeniser of a folder, of which ``tokenizer.json`` is enough.

    Args:
        folder: a path or ``package:NAME/sub/folder``.
        max_length: tokens; fewer where the tokeniser says that its model takes fewer.

    Raises:
        DataError: no folder, none that exists, no tokeniser in it, or transformers is not installed.
    """
    if folder is None:
        raise DataError("texts need a tokeniser; data.tokenizer is not set; give the folder of the model or tokeniser")
    try:
        path = resource_folder(folder)
    except ConfigError as error:
        raise DataError(f"data.tokenizer: {error}") from error
    library = _load(path)
    is_packaged = folder.startswith(PACKAGE_PREFIX)
    file = path / _FILE
    return Tokenizer(
        library=library,
        name=folder if is_packaged else path.resolve().name,
        sha256=hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None,
        max_length=min(max_length, int(library.model_max_length)),
    )


def _load(folder: Path) -> Any:
    import_torchvision()  # parts of transformers import it
    transformers = optional_library("transformers")
    try:
        with _quiet():
            library = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        names = sorted({_FILE, *library.vocab_files_names.values()})
        # Without any of them transformers makes a tokeniser that knows no word.
        if not any((folder / name).is_file() for name in names):
            raise FileNotFoundError(f"it has none of {', '.join(names)}")
        return library
    except Exception as error:  # each kind of tokeniser has its own ways to say what is missing
        raise DataError(
            f"data.tokenizer is a folder with tokenizer.json; {folder}: {one_line(error)}; save the tokeniser there "
            "with save_pretrained"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what transformers warns of: it does not know the model, or that texts are cut."""
    log = optional_library("transformers.utils.logging")
    before = log.get_verbosity()
    log.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.set_verbosity(before)
