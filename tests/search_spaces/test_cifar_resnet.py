"""The residual networks against their published sizes, and the members of the space against their choices."""

import itertools
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from autocompress.config import DataSection, ModelSection
from autocompress.data.sources import load_data
from autocompress.errors import ModelError
from autocompress.models import freeze, load_model, load_space, load_weights, space_labels

FILE = Path(__file__).parents[2] / "search_spaces" / "cifar_resnet.py"
SHARED = os.environ.get("AUTOCOMPRESS_DATA")


def _base(name: str, **arguments: Any) -> nn.Module:
    return load_model(ModelSection(source=f"{FILE}:{name}", arguments=arguments), num_classes=10).eval()


@pytest.fixture(scope="module")
def space() -> Any:
    return load_space(f"{FILE}:CifarResNetSpace", {"stem_strides": [1, 2]})


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# The base networks


@pytest.mark.parametrize(("name", "millions"), [("resnet20", 0.27), ("resnet56", 0.85)])
def test_the_base_networks_have_the_published_number_of_parameters(name: str, millions: float) -> None:
    # He et al. 2016, table 6; option A adds none.
    assert round(_parameters(_base(name)) / 1e6, 2) == millions


def test_layers_have_the_names_that_checkpoints_use() -> None:
    names = {name for name, module in _base("resnet20").named_modules() if list(module.parameters(recurse=False))}
    blocks = itertools.product((1, 2, 3), range(3), ("conv1", "bn1", "conv2", "bn2"))
    assert names == {"conv1", "bn1", "linear"} | {f"layer{s}.{i}.{part}" for s, i, part in blocks}


def test_the_shortcut_is_every_second_pixel_between_zero_channels() -> None:
    block = _base("resnet20").layer2[0]
    x = torch.randn(2, 16, 7, 6)
    y = block.shortcut(x)
    assert y.shape == (2, 32, 4, 3)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


def test_a_block_whose_branch_is_silent_passes_its_input_on() -> None:
    block = _base("resnet20").layer1[1]
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(2, 16, 5, 5)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("name", ["resnet20", "resnet56"])
def test_the_base_networks_can_be_traced(name: str) -> None:
    model = _base(name, in_channels=1)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))


def test_the_base_networks_do_not_load_nni() -> None:
    code = f"""
import sys
from autocompress.config import ModelSection
from autocompress.models import load_model
load_model(ModelSection(source={f"{FILE}:resnet20"!r}), 10)
assert not {{"nni", "torchvision"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.shared_data
@pytest.mark.skipif(SHARED is None, reason="AUTOCOMPRESS_DATA is not set")
def test_the_shared_checkpoint_reaches_its_accuracy(tmp_path: Path) -> None:
    for folder in (Path(SHARED or "") / "cifar10" / "train").iterdir():
        files = sorted(folder.iterdir())
        for split, chosen in (("train", files[:1]), ("val", files[-50:]), ("test", files[:1])):
            (tmp_path / split / folder.name).mkdir(parents=True)
            for file in chosen:
                (tmp_path / split / folder.name / file.name).symlink_to(file.absolute())
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    task = load_data(DataSection(source=f"imagefolder:{tmp_path}", mean=mean, std=std), 0)
    model = _base("resnet56")
    load_weights(model, Path(SHARED or "") / "resnet56_cifar10.pt")
    with torch.inference_mode():
        correct = sum(int((model(*x).argmax(1) == y).sum()) for x, y in task.batches(task.validation, 250))
    assert abs(correct / 500 - 0.8844) < 3 * (0.8844 * 0.1156 / 500) ** 0.5


# The space


def _wide_and_shallow(depths: tuple[int, int, int], widths: tuple[int, int, int]) -> dict[str, Any]:
    choices: dict[str, Any] = {"stem.width": widths[0], "stem.stride": 1}
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), start=1):
        choices[f"stage{stage}.depth"] = depth
        if stage > 1:
            choices[f"stage{stage}.width"] = width
        choices |= {f"stage{stage}.block{index}.kernel": 3 for index in range(depth)}
    return choices


@pytest.mark.parametrize(
    ("depths", "widths"), [((0, 1, 2), (32, 64, 128)), ((1, 1, 1), (16, 32, 64)), ((2, 3, 3), (48, 96, 192))]
)
def test_wide_and_shallow_networks_are_members_with_the_weights_counted_by_hand(
    space: Any, depths: tuple[int, int, int], widths: tuple[int, int, int]
) -> None:
    given = _wide_and_shallow(depths, widths)
    member, choices = freeze(space, lambda label, _: given[label])
    assert choices == given
    expected, before = (3 * 9 + 2) * widths[0] + (widths[2] + 1) * 10, widths[0]
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        for index in range(depth):
            expected += (before * 9 + 2) * width + (width * 9 + 2) * width
            expected += (before + 2) * width if stage > 0 and index == 0 else 0
            before = width
    assert _parameters(member) == expected


def _draw(seed: int) -> tuple[Any, list[str]]:
    generator = random.Random(seed)
    asked: list[str] = []

    def choose(label: str, options: list[Any]) -> Any:
        asked.append(label)
        return generator.choice(options)

    return choose, asked


@pytest.mark.parametrize("seed", range(8))
def test_a_member_is_what_its_choices_say(space: Any, seed: int) -> None:
    choose, asked = _draw(seed)
    member, choices = freeze(space, choose)
    assert asked == list(choices)
    width = choices["stem.width"]
    assert member.conv1.out_channels == width
    assert member.conv1.stride == (choices["stem.stride"],) * 2
    for stage in (1, 2, 3):
        blocks = getattr(member, f"layer{stage}")
        assert len(blocks) == choices[f"stage{stage}.depth"]
        width = choices.get(f"stage{stage}.width", width)
        assert all(block.conv1.out_channels == block.conv2.out_channels == width for block in blocks)
        kernels = [choices[f"stage{stage}.block{index}.kernel"] for index in range(len(blocks))]
        assert [block.conv1.kernel_size[0] for block in blocks] == kernels
        asked_here = {label for label in asked if label.startswith(f"stage{stage}.block")}
        assert asked_here == {f"stage{stage}.block{index}.kernel" for index in range(len(blocks))}
    assert member.linear.in_features == width


@pytest.mark.parametrize("seed", range(3))
def test_members_are_plain_networks_that_can_be_traced(space: Any, seed: int) -> None:
    member, _ = freeze(space, _draw(seed)[0])
    assert not any(type(module).__module__.startswith("nni") for module in member.modules())
    assert type(member).__name__ == "CifarResNet"
    x = torch.randn(2, 3, 16, 16)
    traced = torch.fx.symbolic_trace(member.eval())
    assert torch.equal(traced(x), member(x))
    member.train()(x).sum().backward()
    assert all(parameter.grad is not None for parameter in member.parameters())


def test_no_block_of_stage_1_asks_nothing_of_it(space: Any) -> None:
    def choose(label: str, options: list[Any]) -> Any:
        assert not label.startswith("stage1.block")
        return options[0]

    member, choices = freeze(space, choose)
    assert choices["stage1.depth"] == 0
    x = torch.randn(1, 16, 4, 4)
    assert torch.equal(member.layer1(x), x)


def test_members_share_the_outer_names_of_the_base(space: Any) -> None:
    member, _ = freeze(space, lambda label, options: options[0])
    outer = {name for name, _ in _base("resnet20").named_children()}
    assert {name for name, _ in member.named_children()} == outer
    given = _wide_and_shallow((2, 2, 2), (16, 32, 64))
    member, _ = freeze(space, lambda label, _: given[label])
    base, state = _base("resnet20").state_dict(), member.state_dict()
    fitting = {name for name in state if name in base and base[name].shape == state[name].shape}
    assert set(state) - fitting == {name for name in state if "shortcut" in name}


def test_members_are_independent_of_each_other_and_of_the_space(space: Any) -> None:
    first, _ = freeze(space, lambda label, options: options[0])
    second, _ = freeze(space, lambda label, options: options[0])
    assert not {p.data_ptr() for p in first.parameters()} & {p.data_ptr() for p in second.parameters()}
    assert not {p.data_ptr() for p in first.parameters()} & {p.data_ptr() for p in space.parameters()}


def test_a_single_option_is_no_choice() -> None:
    arguments = {"widths": [[16], [32], [64]], "depths": [[0, 2], [1], [1]], "kernels": [3], "in_channels": 1}
    space = load_space(f"{FILE}:CifarResNetSpace", arguments)
    assert space_labels(space) == {"stage1.depth": [0, 2]}
    member, _ = freeze(space, lambda label, options: options[-1])
    assert member(torch.zeros(1, 1, 32, 32)).shape == (1, 10)
    assert len(member.layer1) == 2


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"depths": [[0, 1], [0, 1], [1]]}, "stages 2 and 3 have at least one block"),
        ({"depths": [[0], [1], [1]]}, "and stage 1 may"),
        ({"widths": [[16], [32]]}, "options for 3 stages"),
        ({"kernels": [3, 4]}, "kernel sizes are odd; got [3, 4]"),
        ({"widths": [[16], [], [64]]}, "every list of options has at least one"),
    ],
)
def test_options_that_make_no_network_get_one_line(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_space(f"{FILE}:CifarResNetSpace", arguments)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
