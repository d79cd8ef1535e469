"""What is expensive to make and shared by many tests: data, networks, a trained base."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from benches import make_bench
from hypothesis import settings
from networks import tiny_resnet, with_random_norms
from torch import nn

from autocompress.compression.distillation import Schedule, train_
from autocompress.config import DataSection, ModelSection
from autocompress.data.sources import load_data
from autocompress.data.task import TaskData
from autocompress.deploy.latency_table import CACHE_VARIABLE
from autocompress.models import load_model, load_space
from autocompress.pipeline import Bench
from autocompress.plan import DistillationSpec
from autocompress.torchvision_compat import import_torchvision

import_torchvision()  # timm and transformers import it as well

CIFAR_RESNET = Path(__file__).parents[1] / "search_spaces" / "cifar_resnet.py"
SMALL_SPACE = {
    "in_channels": 1,
    "widths": [[8, 16], [16, 24], [24]],
    "depths": [[0, 1, 2], [1, 2], [1]],
    "kernels": [3, 5],
}

settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """More threads than one only slow these small networks down; so does collecting the libraries' objects."""
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    yield


@pytest.fixture(autouse=True, scope="session")
def latency_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One table of operators for all tests, also of the processes that they start; not the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(folder))
        yield folder


@pytest.fixture(scope="session")
def digits() -> TaskData:
    """8x8 digits, as they are."""
    section = DataSection(
        source="sklearn:digits", image_size=8, calibration_examples=64, augment="crop", augment_padding=1
    )
    return load_data(section, seed=0)


def cifar_resnet(name: str) -> nn.Module:
    """``resnet20`` or ``resnet56`` for grey images, with random weights and norms."""
    torch.manual_seed(0)
    return with_random_norms(
        load_model(ModelSection(source=f"{CIFAR_RESNET}:{name}", arguments={"in_channels": 1}), 10)
    )


@pytest.fixture(scope="session")
def resnet20() -> nn.Module:
    """Not to be changed."""
    return cifar_resnet("resnet20")


@pytest.fixture(scope="session")
def resnet56() -> nn.Module:
    """Not to be changed."""
    return cifar_resnet("resnet56")


@pytest.fixture(scope="session")
def small_space() -> Any:
    """A model space with two options of most choices."""
    return load_space(f"{CIFAR_RESNET}:CifarResNetSpace", SMALL_SPACE)


@pytest.fixture(scope="session")
def trained(digits: TaskData) -> nn.Module:
    """A small residual network that reads most digits; not to be changed."""
    torch.manual_seed(0)
    network = tiny_resnet()
    schedule = Schedule(steps=80, learning_rate=0.1, batch_size=64, weight_decay=5e-4, seed=0)
    train_(network, digits, None, DistillationSpec(), schedule, views=2)
    return network.eval()


@pytest.fixture(scope="session")
def bench(trained: nn.Module, digits: TaskData, small_space: Any) -> Bench:
    """What candidates of the trained base share."""
    return make_bench(trained, digits, small_space)
