"""Every way in which a model takes its inputs and returns its logits, and what is said of those that do not fit."""

import copy
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autocompress import torchvision_compat
from autocompress.adapter import Adapted, Passing, adapt, check_fit, one_tensor
from autocompress.data.task import Split, TaskData
from autocompress.errors import DataError, ModelError

NAMES = ("tokens", "mask")
EXAMPLE = (torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]]))
Pair = namedtuple("Pair", "hidden logits")


@dataclass
class Record:
    loss: Tensor | None
    logits: Tensor


class _Core(nn.Module):
    """Mean of the embeddings that the mask keeps, then a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.dropout, self.linear = nn.Embedding(7, 4), nn.Dropout(0.5), nn.Linear(4, 3)

    def logits(self, tokens: Tensor, mask: Tensor) -> Tensor:
        kept = (self.embedding(tokens) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return self.linear(self.dropout(kept))


class ByName(_Core):
    def forward(self, mask: Tensor | None = None, *, tokens: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        assert mask is not None
        return {"hidden": mask, "logits": self.logits(tokens, mask)}


class InOrder(_Core):
    def forward(self, tokens: Tensor, mask: Tensor, scale: float = 1.0) -> Tensor:
        return self.logits(tokens, mask)


class AsDictionary(_Core):
    def forward(self, batch: dict[str, Tensor]) -> Pair:
        return Pair(batch["mask"], self.logits(batch["tokens"], batch["mask"]))


class AnyName(_Core):
    def forward(self, **batch: Tensor) -> Record:
        return Record(None, self.logits(**batch))


class OnlyInTraining(_Core):
    def forward(self, tokens: Tensor, mask: Tensor) -> Any:
        logits = self.logits(tokens, mask)
        return (logits, logits) if self.training else logits


class Nested(_Core):
    def forward(self, tokens: Tensor, mask: Tensor) -> Any:
        return {"steps": 3, "out": [None, (self.logits(tokens, mask), mask)]}


MODELS: list[tuple[type[_Core], Passing | None]] = [
    (ByName, Passing.BY_NAME),
    (InOrder, None),
    (AsDictionary, Passing.AS_DICTIONARY),
    (AnyName, Passing.BY_NAME),
    (OnlyInTraining, Passing.BY_POSITION),
    (Nested, Passing.BY_POSITION),
]


def _refusal(action: Callable[[], object], kind: type[Exception] = ModelError) -> str:
    with pytest.raises(kind) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    assert message.count("; ") >= 2
    return message


@pytest.mark.parametrize(("kind", "passing"), MODELS)
def test_every_form_gives_one_tensor_in_either_mode(kind: type[_Core], passing: Passing | None) -> None:
    model = kind().eval()
    adapted = adapt(model, NAMES, True, EXAMPLE)
    assert (adapted.passing if isinstance(adapted, Adapted) else None) is passing
    assert (adapted is model) == (passing is None)
    assert torch.equal(adapted(*EXAMPLE), model.logits(*EXAMPLE))
    assert adapted.train()(*EXAMPLE).shape == (2, 3)


@pytest.mark.parametrize(("kind", "passing"), MODELS)
def test_an_adapted_model_is_copied_exported_and_saved(kind: type[_Core], passing: Passing | None) -> None:
    model = adapt(kind(), NAMES, True, EXAMPLE).eval()
    expected = model(*EXAMPLE)
    assert torch.equal(copy.deepcopy(model)(*EXAMPLE), expected)
    other = adapt(kind(), NAMES, True, EXAMPLE).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(*EXAMPLE), expected)
    shapes = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},) * 2
    exported = torch.export.export(model, EXAMPLE, dynamic_shapes=shapes if passing is None else (shapes,))
    longer = tuple(x.repeat(2, 4) for x in EXAMPLE)
    assert torch.allclose(exported.module()(*longer), model(*longer))


def test_nothing_changes_while_a_model_is_tried() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.ReLU(inplace=True))
    model[1].eval()
    before, inputs = copy.deepcopy(model.state_dict()), torch.randn(1, 4)
    kept, state = inputs.clone(), torch.get_rng_state()
    assert adapt(model, ("x",), False, (inputs,)) is model
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(inputs, kept)
    assert (model.training, model[1].training) == (True, False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_by_position_names_do_not_matter() -> None:
    model = InOrder()
    assert adapt(model, ("a", "b"), False, EXAMPLE) is model


def test_a_lone_input_needs_no_name() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    assert adapt(model, ("anything",), True, (torch.zeros(2, 3),)) is model


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_outputs_of_training_are_left_out(name: str) -> None:
    models = torchvision_compat.import_torchvision().models
    model = models.get_model(name, weights=None, num_classes=5, init_weights=False).eval()
    inputs = torch.randn(2, 3, *((96, 96) if name == "googlenet" else (299, 299)))
    adapted = adapt(model, ("image",), False, (inputs,))
    assert isinstance(adapted, Adapted)
    assert torch.equal(adapted.eval()(inputs), model(inputs))
    assert adapted.train()(inputs).shape == (2, 5)


def test_networks_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(**sizes, intermediate_size=32, num_labels=3)
    model = transformers.BertForSequenceClassification(config).eval()
    adapted = adapt(model, ("input_ids", "attention_mask"), True, EXAMPLE)
    assert torch.equal(adapted(*EXAMPLE), model(input_ids=EXAMPLE[0], attention_mask=EXAMPLE[1]).logits)
    message = _refusal(lambda: adapt(model, ("input_ids", "mask"), True, EXAMPLE))
    assert "does not take mask" in message
    assert "takes input_ids, attention_mask, token_type_ids" in message


def test_logits_go_before_what_is_first() -> None:
    first, second = torch.zeros(1), torch.ones(1)
    assert one_tensor({"a": first, "logits": second}) is second
    assert one_tensor({"a": first, "logits": None}) is first
    assert one_tensor(Pair(first, second)) is second
    assert one_tensor((None, "text", [first], second)) is first
    assert one_tensor(Record(first, second)) is second
    assert one_tensor({"a": 3}) is None


# What does not fit


class NeedsMore(_Core):
    def forward(self, tokens: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        return self.logits(tokens, mask)


class OtherName(_Core):
    def forward(self, ids: Tensor) -> Tensor:
        return self.logits(ids, torch.ones_like(ids))


class OneOfThem(_Core):
    def forward(self, tokens: Tensor) -> Tensor:
        return self.logits(tokens, torch.ones_like(tokens))


class NoTensor(_Core):
    def forward(self, tokens: Tensor, mask: Tensor) -> dict[str, float]:
        return {"logits": 3.0}


class FailsInTraining(_Core):
    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        if self.training:
            raise RuntimeError("not\nfor training")
        return self.logits(tokens, mask)


class KeepsAGenerator(InOrder):
    def __init__(self) -> None:
        super().__init__()
        self.generator = (i for i in range(3))


@pytest.mark.parametrize(
    ("kind", "example", "parts"),
    [
        (NeedsMore, EXAMPLE, ["data have tokens, mask", "takes tokens, mask, positions", "it also needs positions"]),
        (OtherName, EXAMPLE, ["takes ids", "tokens int64 [2, 3], mask int64 [2, 3] as one dictionary", "TypeError"]),
        (OneOfThem, EXAMPLE, ["data have tokens, mask", "OneOfThem takes tokens", "it does not take mask"]),
        (NoTensor, EXAMPLE, ["returns logits", "in evaluation NoTensor returned a dict of logits"]),
        (FailsInTraining, EXAMPLE, ["in training and raised RuntimeError: not for training"]),
        (KeepsAGenerator, EXAMPLE, ["can be copied", "KeepsAGenerator", "TypeError"]),
        (InOrder, (EXAMPLE[0].float(), EXAMPLE[1]), ["tokens float32 [2, 3]", "by position", "RuntimeError"]),
        (InOrder, (EXAMPLE[0], EXAMPLE[1][:, :2]), ["mask int64 [2, 2]", "must match the size"]),
    ],
)
def test_a_model_that_does_not_fit_gets_one_line(
    kind: type[_Core], example: tuple[Tensor, ...], parts: list[str]
) -> None:
    message = _refusal(lambda: adapt(kind(), NAMES, True, example))
    for part in parts:
        assert part in message


def test_too_many_inputs_get_one_line() -> None:
    message = _refusal(lambda: adapt(nn.Linear(3, 2), NAMES, False, EXAMPLE))
    assert "takes 2 positional arguments but 3 were given" in message


def _data(classes: int, width: int = 4) -> TaskData:
    split = Split((torch.arange(6.0 * width).reshape(6, width),), torch.zeros(6, dtype=torch.int64))
    return TaskData(
        split,
        split,
        split,
        split,
        class_names=tuple(str(i) for i in range(classes)),
        input_names=("x",),
        preprocessing={},
        prepare=lambda rows: rows,
        augment=lambda rows, indices, view: rows,
    )


class _Transposed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :2].T


class _Infinite(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.exp() * 1e38


def test_outputs_that_fit() -> None:
    check_fit(nn.Linear(4, 3), _data(3))
    check_fit(nn.Linear(4, 9), _data(0))
    check_fit(nn.Unflatten(1, (2, 2)), _data(0))


@pytest.mark.parametrize(
    ("model", "classes", "kind", "parts"),
    [
        (nn.Linear(4, 3), 5, DataError, ["one column per class", "[2, 3] for 2 examples of 5 classes"]),
        (_Transposed(), 2, DataError, ["one column per class", "[2, 3] for 3 examples of 2 classes"]),
        (_Transposed(), 0, DataError, ["one row per example", "[2, 3] for 3 examples"]),
        (nn.Linear(5, 3), 3, ModelError, ["must take the data", "x float32 [2, 4]"]),
        (_Infinite(), 4, ModelError, ["outputs are finite", "x float32 [2, 4]"]),
    ],
)
def test_outputs_that_do_not_fit_get_one_line(
    model: nn.Module, classes: int, kind: type[Exception], parts: list[str]
) -> None:
    message = _refusal(lambda: check_fit(model, _data(classes)), kind)
    for part in parts:
        assert part in message


def test_one_number_for_a_batch_is_not_a_row_per_example() -> None:
    class Loss(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean()

    assert "it is [] for 3 examples" in _refusal(lambda: check_fit(Loss(), _data(0)), DataError)
