"""References, weights and model spaces: what is built, what is refused, and in which words."""

import hashlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from autocompress import models, torchvision_compat
from autocompress.config import ModelSection
from autocompress.errors import ModelError

NETWORKS = '''
"""Factories good and bad."""
import torch
from torch import nn

number = 3

def with_classes(num_classes, width=4):
    return nn.Linear(width, num_classes)

def without_classes(width=4):
    return nn.Linear(width, 2)

def fails(num_classes):
    raise RuntimeError("no such\\nlayer")

def returns_text():
    return "network"

def spoilt(num_classes):
    network = nn.Linear(4, num_classes)
    network.bias.data[1] = float("nan")
    return network

def never_built(num_classes):
    return nn.LazyLinear(num_classes)

def masked(num_classes, value):
    network = nn.Linear(4, num_classes)
    network.register_buffer("mask", torch.full((2,), float(value)))
    return network
'''

SPACES = '''
"""Spaces that choose in each of NNI's ways."""
import nni
from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace, MutableLinear, Repeat
from torch import nn


class Nested(ModelSpace):
    def __init__(self, widths=(4, 8)):
        super().__init__()
        width = nni.choice("width", list(widths))
        self.first = MutableLinear(3, width)
        self.kind = LayerChoice({
            "deep": Repeat(lambda i: nn.Sequential(
                MutableLinear(width, width),
                LayerChoice([nn.ReLU(), nn.Tanh()], label=f"activation{i}"),
            ), (0, 2), label="depth"),
            "wide": MutableLinear(width, width, bias=nni.choice("bias", [True, False])),
        }, label="kind")

    def forward(self, x):
        return self.kind(self.first(x))


class Picks(ModelSpace):
    def __init__(self):
        super().__init__()
        self.pick = InputChoice(n_candidates=3, n_chosen=2, label="inputs")


class Lists(ModelSpace):
    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(LayerChoice([nn.ReLU(), nn.Tanh()], label="fine"))
        self.add_mutable(nni.choice("pair", [(1, 2), (3, 4)]))


def no_space():
    return nn.ReLU()
'''


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("networks") / "networks.py"
    path.write_text(NETWORKS)
    return str(path)


@pytest.fixture(scope="module")
def spaces(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("spaces") / "spaces.py"
    path.write_text(SPACES)
    return str(path)


def _model(source: str, **arguments: Any) -> nn.Module:
    return models.load_model(ModelSection(source=source, arguments=arguments), num_classes=7)


def _refusal(action: Callable[[], object]) -> str:
    with pytest.raises(ModelError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    assert message.count("; ") >= 2
    return message


# Factories


def test_num_classes_goes_to_the_factories_that_take_it(networks: str) -> None:
    assert _model(f"{networks}:with_classes").weight.shape == (7, 4)
    assert _model(f"{networks}:without_classes", width=5).weight.shape == (2, 5)
    assert _model(f"{networks}:with_classes", num_classes=3, width=6).weight.shape == (3, 6)


def test_torchvision_models_have_the_classes_of_the_data() -> None:
    model = _model("torchvision:resnet18")
    assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 7)


def test_modules_are_found_by_name_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_package").mkdir()
    (tmp_path / "their_package" / "nets.py").write_text(NETWORKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert _model("their_package.nets:with_classes").weight.shape == (7, 4)


def test_a_file_may_import_its_neighbour_and_is_loaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "neighbour_of_net.py").write_text("WIDTH = 9\n")
    (tmp_path / "net.py").write_text(
        "from torch import nn\nfrom neighbour_of_net import WIDTH\n"
        "class Net(nn.Linear):\n    def __init__(self):\n        super().__init__(WIDTH, 1)\n"
    )
    first, second = (_model(f"{tmp_path}/net.py:Net") for _ in range(2))
    assert first.weight.shape == (1, 9)
    assert type(first) is type(second)
    assert type(pickle.loads(pickle.dumps(first))) is type(first)


def test_files_of_one_name_are_kept_apart(tmp_path: Path, networks: str) -> None:
    other = tmp_path / "networks.py"
    other.write_text("from torch import nn\ndef with_classes(num_classes): return nn.Linear(1, num_classes)\n")
    assert _model(f"{other}:with_classes").weight.shape == (7, 1)
    assert _model(f"{networks}:with_classes").weight.shape == (7, 4)


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("resnet18", ["a model source is torchvision:NAME, timm:NAME, hf:FOLDER", "got 'resnet18'", "add"]),
        ("torchvision:resnet81", ["is a classifier of torchvision", "'resnet81'", "did you mean resnet18?"]),
        (
            "no_such_package.nets:build",
            ["must import", "No module named 'no_such_package'", "correct the name"],
        ),
        ("timm:resnet81", ["is a network of timm", "'resnet81'", "did you mean resnet18?"]),
        ("timm:resnet18.a1_in1kk", ["is a network of timm", "did you mean resnet18.a1_in1k?"]),
        ("torch.nn:Linaer", ["names a factory", "torch.nn has no 'Linaer'", "did you mean Linear?"]),
        ("{networks}:with_clases", ["names a factory", "has no 'with_clases'", "did you mean with_classes?"]),
        ("{networks}:number", ["a function or class", "of type int", "name what builds"]),
        ("{networks}:fails", ["must build", "'num_classes': 7", "RuntimeError: no such layer", "correct"]),
        ("{networks}:returns_text", ["returns a torch.nn.Module", "returned str", "return the network"]),
        ("{networks}:spoilt", ["are finite", "has NaN or infinity in 1 tensor (bias)", "train it again"]),
        ("{networks}:never_built", ["has values in all", "2 tensors (weight, bias)", "without lazy"]),
        ("no/such/file.py:build", ["names a file", "no/such/file.py does not exist", "correct the path"]),
        ("{broken}:build", ["must import", "ZeroDivisionError", "correct"]),
    ],
)
def test_a_bad_reference_gets_one_line(networks: str, tmp_path: Path, source: str, parts: list[str]) -> None:
    if source.startswith("timm:"):
        pytest.importorskip("timm")
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0\n")
    message = _refusal(lambda: _model(source.format(networks=networks, broken=broken)))
    for part in parts:
        assert part in message


def test_an_argument_the_factory_does_not_know_gets_one_line(networks: str) -> None:
    message = _refusal(lambda: _model(f"{networks}:with_classes", depth=3))
    assert "TypeError" in message
    assert "'depth': 3" in message


def test_a_task_without_classes_leaves_the_outputs_to_the_arguments(networks: str) -> None:
    section = ModelSection(source=f"{networks}:with_classes", arguments={"num_classes": 3})
    assert models.load_model(section, num_classes=0).weight.shape == (3, 4)
    bare = ModelSection(source=f"{networks}:with_classes")
    assert "missing 1 required positional argument" in _refusal(lambda: models.load_model(bare, num_classes=0))
    assert models.load_model(ModelSection(source="torchvision:squeezenet1_1"), 0).num_classes == 1000


def test_masks_may_have_minus_infinity_and_nothing_else(networks: str) -> None:
    assert torch.isneginf(_model(f"{networks}:masked", value="-inf").mask).all()
    for value in ("inf", "nan"):
        assert "1 tensor (mask)" in _refusal(lambda value=value: _model(f"{networks}:masked", value=value))


@pytest.mark.parametrize("name", ["resnet18", "resnet18.a1_in1k"])
def test_timm_models_have_the_classes_of_the_data(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("timm")
    model = _model(f"timm:{name}", in_chans=1)
    assert model.eval()(torch.zeros(1, 1, 32, 32)).shape == (1, 7)
    assert capfd.readouterr() == ("", "")


def test_without_timm_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    message = _refusal(lambda: _model("timm:resnet18"))
    assert "needs the package timm" in message
    assert 'pip install "autocompress[timm]"' in message


@pytest.mark.parametrize(
    ("source", "argument"),
    [
        ("timm:resnet18", {"pretrained": True}),
        ("timm:resnet18", {"checkpoint_path": "a.pth"}),
        ("torchvision:resnet18", {"weights": "DEFAULT"}),
    ],
)
def test_arguments_bring_no_weights(source: str, argument: dict[str, Any]) -> None:
    message = _refusal(lambda: _model(source, **argument))
    assert f"has '{next(iter(argument))}'" in message
    assert "model.weights" in message


def test_weights_make_the_base_whole(networks: str, tmp_path: Path) -> None:
    source = f"{networks}:with_classes"
    torch.manual_seed(0)
    bare = models.load_base(ModelSection(source=source), 7)
    assert (bare.pretrained, bare.new) == ("none", ())
    save_file(bare.module.state_dict(), tmp_path / "a.safetensors")
    torch.manual_seed(1)
    loaded = models.load_base(ModelSection(source=source, weights=str(tmp_path / "a.safetensors")), 7)
    assert (loaded.pretrained, loaded.new) == ("whole", ())
    assert models.weights_digest(loaded.module) == models.weights_digest(bare.module)


# Weights


class _Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2)
        self.linear = nn.Linear(2, 4)


@pytest.fixture
def trained() -> _Small:
    torch.manual_seed(3)
    return _Small()


def _save(state: Any, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("a.pt", lambda state: state),
        ("a.pth", lambda state: {"state_dict": state, "epoch": 3}),
        ("a.pt", lambda state: {"model": state, "optimizer": {"lr": 0.1}}),
        ("a.safetensors", lambda state: state),
        ("a.pt", lambda state: {k: v for k, v in state.items() if "num_batches" not in k}),
    ],
)
def test_weights_come_back_from_every_form_of_file(
    tmp_path: Path, trained: _Small, name: str, wrap: Callable[[Any], Any]
) -> None:
    path = _save(wrap(trained.state_dict()), tmp_path / name)
    model = _Small()
    assert models.weights_digest(model) != models.weights_digest(trained)
    models.load_weights(model, path)
    assert models.weights_digest(model) == models.weights_digest(trained)


class _Trap:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, trained: _Small) -> None:
    sprung = tmp_path / "sprung"
    path = _save(trained.state_dict() | {"extra": _Trap(sprung)}, tmp_path / "trap.pt")
    message = _refusal(lambda: models.load_weights(_Small(), path))
    assert not sprung.exists()
    assert "holds tensors only" in message
    assert "torch.save(model.state_dict(), FILE) or a .safetensors file" in message
    torch.load(path, weights_only=False)
    assert sprung.exists()  # the trap is a real one


def test_a_whole_pickled_model_is_refused(tmp_path: Path, trained: _Small) -> None:
    assert "holds tensors only" in _refusal(
        lambda: models.load_weights(_Small(), _save(trained, tmp_path / "whole.pt"))
    )


def _without(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda state: {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (_without("linear.weight"), ["fit the model", "lack 1 tensor (linear.weight)", "check model.source"]),
        (
            lambda s: {f"module.{k}": v for k, v in s.items()},
            ["lack 8 tensors (conv.weight, conv.bias, norm."],
        ),
        (lambda s: s | {"head.bias": torch.zeros(2)}, ["no place in the model for 1 tensor (head.bias)"]),
        (
            lambda s: s | {"linear.bias": torch.zeros(9)},
            ["other shapes for 1 tensor (linear.bias [9] for [4])"],
        ),
        (
            lambda s: s | {"conv.bias": torch.full((2,), torch.nan)},
            ["finite", "NaN or infinity in 1 tensor (conv"],
        ),
        (lambda s: s | {"epoch": 3}, ["are a state_dict", "a dictionary with 'epoch' of type int", "save"]),
        (lambda s: torch.zeros(3), ["are a state_dict", "holds a Tensor", "save model.state_dict()"]),
    ],
)
def test_weights_that_do_not_fit_get_one_line_and_change_nothing(
    tmp_path: Path, trained: _Small, change: Callable[[dict[str, Any]], Any], parts: list[str]
) -> None:
    path = _save(change(dict(trained.state_dict())), tmp_path / "weights.pt")
    model = _Small()
    before = models.weights_digest(model)
    message = _refusal(lambda: models.load_weights(model, path))
    for part in parts:
        assert part in message
    assert models.weights_digest(model) == before


@pytest.mark.parametrize("name", ["text.pt", "text.pth", "text.safetensors", "text.bin"])
def test_a_file_of_something_else_gets_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("these are no weights")
    assert name in _refusal(lambda: models.load_weights(_Small(), tmp_path / name))


def test_a_truncated_checkpoint_gets_one_line(tmp_path: Path, trained: _Small) -> None:
    path = _save(trained.state_dict(), tmp_path / "cut.pt")
    path.write_bytes(path.read_bytes()[:500])
    assert "cut.pt" in _refusal(lambda: models.load_weights(_Small(), path))


def test_missing_weights_get_one_line(tmp_path: Path) -> None:
    assert "does not exist; correct the path" in _refusal(lambda: models.load_weights(_Small(), tmp_path / "none.pt"))


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.linear = nn.Embedding(3, 2), nn.Linear(2, 3, bias=False)
        self.linear.weight = self.embedding.weight


def test_one_of_the_names_of_a_tensor_is_enough(tmp_path: Path) -> None:
    other = _Tied()
    for name in ("embedding.weight", "linear.weight"):
        model = _Tied()
        models.load_weights(model, _save({name: other.linear.weight.detach()}, tmp_path / "tied.safetensors"))
        assert torch.equal(model.linear.weight, other.linear.weight)
        assert model.linear.weight is model.embedding.weight


def test_masks_in_a_file_may_have_minus_infinity(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    model.register_buffer("mask", torch.full((2,), -torch.inf))
    models.load_weights(model, _save(model.state_dict(), tmp_path / "masked.pt"))


def test_the_digest_is_sha256_of_what_it_says() -> None:
    model = nn.Linear(2, 1)
    expected = hashlib.sha256()
    expected.update(b"bias torch.float32 (1,)\n" + model.bias.detach().numpy().tobytes())
    expected.update(b"weight torch.float32 (1, 2)\n" + model.weight.detach().numpy().tobytes())
    assert models.weights_digest(model) == expected.hexdigest()


def test_the_digest_sees_values_names_shapes_and_dtypes() -> None:
    model = nn.Linear(2, 2)
    variants = [model, nn.Sequential(model), nn.Linear(2, 2), nn.Linear(4, 1)]
    with torch.no_grad():
        variants[3].weight.copy_(model.weight.reshape(1, 4))
    digests = {models.weights_digest(variant) for variant in variants}
    digests.add(models.weights_digest(model.half()))
    digests.add(models.weights_digest(model.bfloat16()))
    assert len(digests) == 6


# Model spaces


def test_labels_are_those_of_the_whole_space(spaces: str) -> None:
    space = models.load_space(f"{spaces}:Nested", {"widths": [4, 8, 16]})
    assert models.space_labels(space) == {
        "width": [4, 8, 16],
        "kind": ["deep", "wide"],
        "depth": [0, 1, 2],
        "activation0": [0, 1],
        "activation1": [0, 1],
        "bias": [True, False],
    }


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ({"width": 8, "kind": "wide", "bias": False}, {"width", "kind", "bias"}),
        ({"width": 4, "kind": "deep", "depth": 0}, {"width", "kind", "depth"}),
        (
            {"width": 8, "kind": "deep", "depth": 1, "activation0": 1},
            {"width", "kind", "depth", "activation0"},
        ),
    ],
)
def test_freezing_asks_once_for_each_label_in_use_and_for_no_other(
    spaces: str, given: dict[str, Any], used: set[str]
) -> None:
    space = models.load_space(f"{spaces}:Nested", {})
    asked: list[str] = []

    def choose(label: str, options: list[Any]) -> Any:
        asked.append(label)
        assert given[label] in options
        return given[label]

    member, choices = models.freeze(space, choose)
    assert sorted(asked) == sorted(used)
    assert choices == given
    assert member(torch.zeros(2, 3)).shape == (2, given["width"])


def test_a_member_is_what_was_chosen_and_again_from_its_choices(spaces: str) -> None:
    space = models.load_space(f"{spaces}:Nested", {})
    torch.manual_seed(0)
    member, choices = models.freeze(space, lambda label, options: options[-1])
    assert (choices["kind"], choices["bias"]) == ("wide", False)
    assert member.kind.bias is None
    torch.manual_seed(0)
    again, same = models.freeze(space, lambda label, _: choices[label])
    assert same == choices
    assert models.weights_digest(again) == models.weights_digest(member)


def test_an_answer_that_is_no_option_gets_one_line(spaces: str) -> None:
    space = models.load_space(f"{spaces}:Nested", {})
    message = _refusal(lambda: models.freeze(space, lambda label, options: 5))
    assert "one of its label's options" in message
    assert "5 not found in [4, 8]" in message


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("Picks", ["choices from lists", "inputs is a CategoricalMultiple", "nni.choice"]),
        ("Lists", ["strings, numbers or booleans", "pair has (1, 2)", "name the options"]),
    ],
)
def test_choices_that_no_plan_can_hold_get_one_line(spaces: str, name: str, parts: list[str]) -> None:
    message = _refusal(lambda: models.space_labels(models.load_space(f"{spaces}:{name}", {})))
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("name", "part"),
    [("no_space", "gave ReLU; derive it from ModelSpace"), ("Nestd", "did you mean Nested?")],
)
def test_what_is_no_space_gets_one_line(spaces: str, name: str, part: str) -> None:
    assert part in _refusal(lambda: models.load_space(f"{spaces}:{name}", {}))


# Imports


def _python(code: str, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"HOME": str(home)},
        timeout=120,
    )


def test_nni_and_torchvision_import_without_a_word_or_a_file(tmp_path: Path) -> None:
    code = """
import logging, sys
import autocompress.models as models
assert not {"nni", "torchvision"} & set(sys.modules)
before = list(logging.getLogger().handlers), logging.getLogger().level
vision = models.import_torchvision()
assert vision is models.import_torchvision()
models.import_nni()
import torchvision, nni, pytorch_lightning
assert vision is torchvision
assert (list(logging.getLogger().handlers), logging.getLogger().level) == before
logging.getLogger("nni").info("INFO goes nowhere")
"""
    done = _python(code, tmp_path)
    assert done.stdout == ""
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("loads", [True, False])
def test_schemas_are_declared_only_where_the_compiled_part_does_not_load(
    monkeypatch: pytest.MonkeyPatch, loads: bool
) -> None:
    torchvision = torchvision_compat.import_torchvision()
    declared: list[bool] = []
    monkeypatch.setattr(torchvision_compat, "_compiled_part_loads", lambda: loads)
    monkeypatch.setattr(torchvision_compat, "_declare_schemas", lambda: declared.append(True))
    monkeypatch.setattr(torchvision_compat.importlib, "import_module", lambda name: torchvision)
    monkeypatch.delitem(sys.modules, "torchvision")
    torchvision_compat.import_torchvision.__wrapped__()
    assert declared == ([] if loads else [True])


def test_declaring_the_schemas_twice_does_not_clash() -> None:
    torchvision_compat.import_torchvision()
    torchvision_compat._declare_schemas()
    assert torch.ops.torchvision.nms.default is not None
