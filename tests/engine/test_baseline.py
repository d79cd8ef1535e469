"""A base is trained once for a start, data and settings; what students look into is found in it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from searches import HEAD, Notes
from sequences import Encoder, task

from autocompress.analysis import analyse
from autocompress.compression.distillation import Acceleration
from autocompress.compression.intermediate import Points
from autocompress.config import StudyConfig, load_study
from autocompress.deploy import timing
from autocompress.engine import baseline
from autocompress.engine.baseline import KEPT_BASES, Inputs, ensure_run, load_inputs
from autocompress.engine.events import Silent
from autocompress.engine.run_folder import read_baseline

STUDY = f"""{HEAD}
[training]
steps = 7
batch_size = 32
[target]
training_threads = 1
"""


@pytest.fixture(autouse=True, scope="module")
def nothing_is_timed() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baseline, "time_latency", functools.partial(timing.time_latency, seconds=0.1))
        patch.setattr(baseline, "fastest_acceleration", lambda *_: Acceleration())
        yield


def study(folder: Path, old: str = "", new: str = "") -> StudyConfig:
    assert old in STUDY
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.toml").write_text(STUDY.replace(old, new) if old else STUDY)
    return load_study(folder / "study.toml")


def made(root: Path, config: StudyConfig) -> tuple[str, dict[str, torch.Tensor]]:
    """What was said of the training, and the weights of a new run's base."""
    notes = Notes()
    run = ensure_run(root, load_inputs(config), notes)
    assert read_baseline(run).validation is not None
    (said,) = (note for note in notes.notes if "trained base" in note or "training the base" in note)
    return said, load_file(run.baseline / "weights.safetensors")


def test_a_second_run_takes_the_base_that_the_first_trained(tmp_path: Path) -> None:
    first, weights = made(tmp_path / "one", study(tmp_path))
    assert first == "training the base for 60 steps"
    (kept,) = (tmp_path / KEPT_BASES).iterdir()
    assert load_file(kept).keys() == weights.keys()
    # totals, space and limits do not matter to the base
    second, again = made(tmp_path / "two", study(tmp_path, "trials = 8", "trials = 9"))
    assert second == f"taking the trained base from {kept}"
    assert all(torch.equal(value, weights[name]) for name, value in again.items())
    third, other = made(tmp_path / "three", study(tmp_path, "steps = 60", "steps = 61"))
    assert third == "training the base for 61 steps"
    assert not all(torch.equal(value, weights[name]) for name, value in other.items())
    assert len(list((tmp_path / KEPT_BASES).iterdir())) == 2


def test_a_damaged_base_is_trained_and_kept_again(tmp_path: Path) -> None:
    _, weights = made(tmp_path / "one", study(tmp_path))
    (kept,) = (tmp_path / KEPT_BASES).iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(whole[: len(whole) // 2])
    said, again = made(tmp_path / "two", study(tmp_path))
    assert said == "training the base for 60 steps"
    assert all(torch.equal(value, weights[name]) for name, value in again.items())
    assert kept.read_bytes() == whole


def test_nothing_is_kept_of_a_run_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_arguments: object, **_options: object) -> None:
        raise RuntimeError("no analysis today")

    monkeypatch.setattr(baseline, "analyse", fails)
    config = study(tmp_path / "elsewhere")
    with pytest.raises(RuntimeError, match="today"):
        ensure_run(tmp_path / "runs" / "one", load_inputs(config), Silent())
    assert not (tmp_path / "runs").exists()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return load_inputs(study(tmp_path_factory.mktemp("inputs")))


@pytest.mark.parametrize(
    ("old", "new", "matters"),
    [
        ("seed = 3", "seed = 4", True),
        ("steps = 60", "steps = 61", True),
        ("batch_size = 32", "batch_size = 33", True),
        ("[training]", '[training]\noptimizer = "adamw"', True),
        ("image_size = 8", "image_size = 8\nmean = [0.5]\nstd = [0.5]", True),
        ("trials = 8", "trials = 5", False),
        ("steps = 7", "steps = 8", False),
        ('name = "tiny"', 'name = "other"', False),
        ("[target]", "[space]\nsparsity = [0.0]\n[limits]\nmax_size_ratio = 0.3\n[target]", False),
    ],
)
def test_a_kept_base_is_one_of_the_same_training(
    inputs: Inputs, tmp_path: Path, old: str, new: str, matters: bool
) -> None:
    other = replace(inputs, config=study(tmp_path, old, new))
    assert (baseline._training_digest(other) != baseline._training_digest(inputs)) is matters


def test_a_kept_base_is_one_of_the_same_data_and_start(inputs: Inputs) -> None:
    digest = baseline._training_digest(inputs)
    train = inputs.data.train
    labels = train.labels.clone()
    labels[5] = (labels[5] + 1) % 10
    changed = replace(inputs, data=replace(inputs.data, train=replace(train, labels=labels)))
    assert baseline._training_digest(changed) != digest
    pixels = tuple(x.clone() for x in train.inputs)
    pixels[0].view(-1)[7] += 1
    changed = replace(inputs, data=replace(inputs.data, train=replace(train, inputs=pixels)))
    assert baseline._training_digest(changed) != digest
    assert baseline._training_digest(inputs) == digest


def test_students_look_into_the_longest_run_of_blocks_and_all_attentions() -> None:
    data = task(numbers=False)
    torch.manual_seed(0)
    analysis = analyse(Encoder(2).eval(), data.example_inputs(16), data.axes)
    blocks = ("layers.0", "layers.1", "layers.2")
    attentions = tuple((f"{block}.q", f"{block}.k", f"{block}.v") for block in blocks)
    assert baseline._points(analysis) == Points(blocks, attentions)
    assert baseline._points(analysis.model_copy(update={"runs": (), "groups": ()})) == Points()
