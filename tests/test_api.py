"""The search from Python: a live network, data in memory."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import tiny_resnet
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import autocompress
from autocompress.errors import ConfigError, DataError, ModelError, RunError


def data(rows: int = 160) -> dict[str, Any]:
    """Whether the left half of an image is brighter than the right one."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(rows) % 2
    images = torch.randn(rows, 1, 8, 8, generator=generator)
    images[..., :4] += 2.0 * labels.reshape(-1, 1, 1, 1)
    return {"train": (images, labels)}


SETTINGS: dict[str, Any] = {
    "budget": None,
    "trials": 2,
    "quiet": True,
    "train_base": True,
    "baseline": {"steps": 60, "learning_rate": 0.05},
    "training": {"steps": 4, "batch_size": 16},
}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return tiny_resnet(num_classes=2, in_channels=1, width=8)


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    return SETTINGS


@pytest.fixture(scope="module")
def results(
    model: nn.Module, settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> autocompress.Results:
    return autocompress.search(model, data(), out=tmp_path_factory.mktemp("live") / "run", **settings)


def test_the_front_is_a_table_of_files(results: autocompress.Results) -> None:
    assert len(results.candidates) == 2
    assert 1 <= len(results.front) <= 2
    assert all(Path(path).is_file() for path in results.front["artifact"])
    assert results.front["latency_ratio"].is_monotonic_increasing


def test_report_and_export(results: autocompress.Results, tmp_path: Path) -> None:
    assert results.report(tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!")
    folder = results.export(tmp_path / "best", best="min size_bytes")
    assert (folder / "model.onnx").read_bytes() == Path(
        results.front.sort_values("size_bytes")["artifact"].iloc[0]
    ).read_bytes()
    with pytest.raises(RunError, match="one of"):
        results.export(tmp_path / "both", trial=0, best="min size_bytes")


def test_the_model_is_left_alone(model: nn.Module, settings: dict[str, Any], tmp_path: Path) -> None:
    before = copy.deepcopy(model.state_dict())
    autocompress.search(model, data(), out=tmp_path / "run", **(settings | {"trials": 1}))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_same_call_resumes_and_another_model_is_refused(
    results: autocompress.Results, model: nn.Module, settings: dict[str, Any]
) -> None:
    again = autocompress.search(model, data(), out=results.run.root, **(settings | {"trials": 3}))
    frame = again.candidates
    assert list(frame["trial"])[:2] == [0, 1]
    assert (frame["state"] == "complete").sum() == 3  # the ladder's estimates do not count
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.parameters()).add_(0.1)
    with pytest.raises(RunError, match="belongs to one study"):
        autocompress.search(other, data(), out=results.run.root, **settings)


def broken() -> nn.Module:
    network = tiny_resnet(num_classes=2)
    with torch.no_grad():
        next(network.parameters()).fill_(torch.nan)
    return network


@pytest.mark.parametrize(
    ("network", "given", "change", "error", "text"),
    [
        (broken, data(), {}, ModelError, "finite"),
        (lambda: tiny_resnet(num_classes=3), data(), {}, DataError, "one column per class"),
        (lambda: tiny_resnet(num_classes=2), {"test": data()["train"]}, {}, DataError, "train"),
        (lambda: tiny_resnet(num_classes=2), data(), {"limits": {"min_speedups": 2}}, ConfigError, "min_speedup"),
        (lambda: tiny_resnet(num_classes=2), data(), {"trials": None}, ConfigError, "needs an end"),
        (lambda: tiny_resnet(num_classes=2), data(), {"task": {"loss": "a:b"}}, ConfigError, "use loss and metric"),
        (lambda: tiny_resnet(num_classes=2), data(), {"baseline": {"train": True}}, ConfigError, "use train_base"),
        (lambda: tiny_resnet(num_classes=2), data(), {"loss": cross_entropy}, ConfigError, "metric is missing"),
    ],
)
def test_wrong_input_is_said_in_one_line_and_leaves_nothing(
    network: Any,
    given: Any,
    change: dict[str, Any],
    error: type[Exception],
    text: str,
    settings: dict[str, Any],
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=text) as failure:
        autocompress.search(network(), given, out=tmp_path / "runs" / "run", **(settings | change))
    assert "\n" not in str(failure.value)
    assert list(tmp_path.iterdir()) == []


def test_a_task_of_ones_own(tmp_path: Path, settings: dict[str, Any]) -> None:
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(1))
    y = x[:, :1] - 0.5 * x[:, 1:2]

    def r2(outputs: Tensor, targets: Tensor) -> float:
        return 1 - float((outputs - targets).square().sum() / (targets - targets.mean()).square().sum())

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1))
    changes = {
        "loss": nn.functional.mse_loss,
        "metric": r2,
        "trials": 4,
        "baseline": {"steps": 300, "learning_rate": 0.05},
    }
    results = autocompress.search(network, {"train": (x, y)}, out=tmp_path / "run", **(settings | changes))
    front = results.front
    assert front["val_accuracy"].max() > 0.9
    assert (front["val_drop_low"] <= front["val_drop_points"]).all() and (
        front["val_drop_points"] <= front["val_drop_high"]
    ).all()
    assert results.report().is_file()
