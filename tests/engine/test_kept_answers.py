"""What the teacher has said outlives whoever asked, is there for all who ask the same, and for nobody else."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from autocompress.compression.distillation import Acceleration, Teacher, unknown
from autocompress.data.augmentation import image_augmentation
from autocompress.data.task import TaskData
from autocompress.engine.kept_answers import answers_folder, kept_answers
from autocompress.engine.run_folder import RunFolder
from autocompress.engine.warm_start import take_answers_

VIEWS = 2
ROWS = torch.tensor([5, 90, 17, 33])


def teacher(model: nn.Module, data: TaskData, folder: Path | None) -> Teacher:
    table = unknown if folder is None else kept_answers(folder)
    return Teacher(model, data, VIEWS, Acceleration(), table=table)


def test_who_asks_later_is_told_what_was_said_first(trained: nn.Module, digits: TaskData, tmp_path: Path) -> None:
    inputs = digits.training_inputs(ROWS, 1)
    alone = teacher(trained, digits, None).outputs(ROWS, 1, inputs)
    first, second = (teacher(trained, digits, tmp_path / "answers") for _ in range(2))
    said = first.outputs(ROWS, 1, inputs)
    again = second.outputs(ROWS, 1, inputs)
    assert first.seconds > 0 and second.seconds == 0.0
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(alone, said, again, strict=True))
    # both ask on: each is told at once what the other has found out
    more, inputs = torch.tensor([1, 2, 5]), digits.training_inputs(torch.tensor([1, 2, 5]), 1)
    second.outputs(more, 1, inputs)
    took = first.seconds
    first.outputs(more, 1, inputs)
    assert second.seconds > 0 and first.seconds == took
    other_view = digits.training_inputs(ROWS, 0)
    second.outputs(ROWS, 0, other_view)
    assert first.expected_seconds(VIEWS, 10**9) == pytest.approx(
        (VIEWS * len(digits.train) - len(ROWS) - 2 - len(ROWS)) * took / len(ROWS)
    )


def test_answers_outlive_a_process_that_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "answers"
    script = (
        "import os, signal, sys, torch; from pathlib import Path\n"
        "from autocompress.engine.kept_answers import kept_answers\n"
        "table = kept_answers(Path(sys.argv[1]))(1, (6, 3)); table[2] = torch.tensor([0.5, -2.0, 4.0])\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(folder)], check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    table = kept_answers(folder)(1, (6, 3))
    assert table[2].tolist() == [0.5, -2.0, 4.0]
    assert table[[0, 1, 3, 4, 5]].isnan().all()


def test_an_answer_that_is_half_written_is_asked_for(trained: nn.Module, digits: TaskData, tmp_path: Path) -> None:
    folder, inputs = tmp_path / "answers", digits.training_inputs(ROWS, 0)
    first = teacher(trained, digits, folder)
    said, _ = first.outputs(ROWS, 0, inputs)
    kept_answers(folder)(0, first._shape)[ROWS[1], 3:] = torch.nan
    second = teacher(trained, digits, folder)
    again, _ = second.outputs(ROWS, 0, inputs)
    assert second.seconds > 0 and torch.equal(said, again)


@pytest.mark.parametrize("damage", ["cut short", "another shape", "no table"])
def test_a_table_that_cannot_be_used_is_made_anew(damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "answers"
    kept_answers(folder)(0, (4, 2))[1] = 1.0
    path = folder / "0.npy"
    if damage == "cut short":
        path.write_bytes(path.read_bytes()[:-3])
    if damage == "no table":
        path.write_bytes(b"")
    shape = (4, 3) if damage == "another shape" else (4, 2)
    found = kept_answers(folder)(0, shape)
    assert found.shape == shape and found.isnan().all()
    found[2] = 2.0
    assert (kept_answers(folder)(0, shape)[2] == 2.0).all()


def test_only_the_same_questions_to_the_same_base_share_answers(
    trained: nn.Module, resnet20: nn.Module, digits: TaskData, tmp_path: Path
) -> None:
    mode = Acceleration()
    own = answers_folder(tmp_path, trained, digits, VIEWS, mode)
    assert own == answers_folder(tmp_path, trained, replace(digits), VIEWS, mode)
    reseeded = replace(digits, augment=image_augmentation("crop", 1, 1))
    fewer = replace(digits, train=digits.train.take(torch.arange(len(digits.train) - 1)))
    others = {
        answers_folder(tmp_path, trained, reseeded, VIEWS, mode),
        answers_folder(tmp_path, trained, fewer, VIEWS, mode),
        answers_folder(tmp_path, trained, digits, VIEWS, replace(mode, bfloat16=True)),
        answers_folder(tmp_path, resnet20, digits, VIEWS, mode),
    }
    assert len(others) == 4 and own not in others


def test_an_earlier_runs_answers_are_taken_where_it_was_asked_the_same(tmp_path: Path) -> None:
    own, other = RunFolder(tmp_path / "own"), RunFolder(tmp_path / "other")
    for run in (own, other):
        run.baseline.mkdir(parents=True)
    for name in ("answers_a", "answers_b"):
        kept_answers(other.baseline / name)(0, (4, 2))[3] = torch.tensor([1.0, 2.0])
    take_answers_(own.baseline / "answers_a", other)
    take_answers_(own.baseline / "answers_c", other)
    assert [path.name for path in own.baseline.iterdir()] == ["answers_a"]
    table = kept_answers(own.baseline / "answers_a")(0, (4, 2))
    assert table[3].tolist() == [1.0, 2.0] and table[:3].isnan().all()
    table[0] = torch.tensor([5.0, 6.0])  # a copy: the other run keeps its own
    assert kept_answers(other.baseline / "answers_a")(0, (4, 2))[0].isnan().all()
