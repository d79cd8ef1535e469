"""What a ladder takes over from runs beside it, and what it must not."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benches import make_bench
from ladders import make_guide
from safetensors.torch import load_file, save_file
from torch import nn

from autocompress.config import LimitsSection, StudyConfig, load_study
from autocompress.data.task import TaskData
from autocompress.engine.guided import Guide
from autocompress.engine.run_folder import RunFolder, write_study
from autocompress.engine.warm_start import TRAIN_DIGEST, earlier_run, solver_plans, take_over_

STUDY = """
[study]
name = "tiny"
trials = 3
[model]
source = "some.package:Network"
[data]
source = "sklearn:digits"
"""


def study(folder: Path, text: str = STUDY) -> StudyConfig:
    (folder / "study.toml").write_text(text, encoding="utf-8")
    return load_study(folder / "study.toml")


def made(
    root: Path, config: StudyConfig, weight: float = 1.0, seconds: float = 5.0, digest: str = "a", steps: int = 40
) -> RunFolder:
    run = RunFolder(root)
    run.baseline.mkdir(parents=True)
    (root / "shared").mkdir()
    write_study(run, config)
    save_file({"w": torch.full((2, 3), weight)}, run.baseline / "weights.safetensors")
    save_file({"w": torch.full((2, 3), seconds)}, root / "shared" / "base.safetensors")
    entry = {"cycles": 2, "steps": steps, "seconds": seconds, "seconds_per_step": 0.1, "macs": 9.0}
    (root / "shared" / "progress.json").write_text(json.dumps({"base": entry}))
    (root / "shared" / "tables.json").write_text("{}")
    (root / "shared" / TRAIN_DIGEST).write_text(digest)
    return run


def test_of_several_runs_the_longest_trained_lends_and_of_equal_ones_the_latest(tmp_path: Path) -> None:
    config = study(tmp_path)
    runs = tmp_path / "runs"
    own = made(runs / "own", config, steps=900)
    made(runs / "short", config, steps=1)
    for age, name in enumerate(("latest", "later", "first")):
        made(runs / name, config, steps=9)
        os.utime(runs / name / "shared" / "tables.json", (1e9 - age, 1e9 - age))
    found = earlier_run(own, config, "a")
    assert found is not None and found.root.name == "latest"


@pytest.mark.parametrize(
    "other", ["base", "examples", "data", "hidden", "damaged", "odd", "without weights", "unfinished"]
)
def test_another_base_other_examples_or_a_damaged_run_lend_nothing(tmp_path: Path, other: str) -> None:
    config = study(tmp_path)
    runs = tmp_path / "runs"
    own = made(runs / "own", config)
    changed = study(tmp_path, STUDY + "image_size = 16\n") if other == "data" else config
    name = ".hidden" if other == "hidden" else "other"
    run = made(runs / name, changed, 2.0 if other == "base" else 1.0, digest="b" if other == "examples" else "a")
    if other == "damaged":
        (run.root / "shared" / "progress.json").write_text("{")
    if other == "odd":
        (run.root / "shared" / "progress.json").write_text('{"base": 3}')
    if other == "without weights":
        (run.baseline / "weights.safetensors").write_bytes(b"cut")
    if other == "unfinished":
        (run.root / "shared" / "tables.json").unlink()
    assert earlier_run(own, config, "a") is None


def test_what_is_taken_over_cost_this_run_nothing(tmp_path: Path) -> None:
    config = study(tmp_path)
    own, other = made(tmp_path / "runs" / "own", config), made(tmp_path / "runs" / "other", config, seconds=9.0)
    shutil.rmtree(own.root / "shared")
    (own.root / "shared").mkdir()
    take_over_(own, other)
    record = json.loads((own.root / "shared" / "progress.json").read_text())
    assert record["base"]["seconds"] == 0.0 and record["base"]["cycles"] == 2
    assert torch.equal(load_file(own.root / "shared" / "base.safetensors")["w"], torch.full((2, 3), 9.0))
    assert (own.root / "shared" / "tables.json").read_text() == "{}"


# The solver's own front


@pytest.fixture(scope="module")
def guide(resnet20: nn.Module, digits: TaskData, tmp_path_factory: pytest.TempPathFactory) -> Guide:
    return make_guide(make_bench(resnet20, digits), tmp_path_factory.mktemp("table"))


def first_ratios(guide: Guide) -> list[tuple[float, float]]:
    """Bytes and latency of the solver's plans by the tables, over the baseline's."""
    plans = [named.plan for named in solver_plans(guide, "base", None)]
    operators = [(plan, guide.predictor.operators(plan)) for plan in plans]
    return [
        (guide.predictor.size_bytes(plan, found) / guide.baseline.size_bytes, guide.predictor.latency_ratio(found))
        for plan, found in operators
    ]


def test_first_plans_keep_the_limits(guide: Guide) -> None:
    limits = LimitsSection(min_speedup=3.0, max_size_ratio=0.2)
    found = first_ratios(replace(guide, limits=limits))
    assert found and all(size <= 0.2 and latency <= 1 / 3.0 for size, latency in found)


def test_without_limits_first_plans_go_from_mild_to_bold(guide: Guide) -> None:
    """Which of them a base can bear, nobody knows before."""
    sizes, latencies = zip(*first_ratios(guide), strict=True)
    assert max(sizes) > 2.5 * min(sizes)
    # integer kernels alone make the mildest fast, on some processors more than on others
    assert max(latencies) > 1.5 * min(latencies)
