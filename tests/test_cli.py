"""The command line as a user meets it: statuses, one-line errors, nothing half-made left behind."""

from __future__ import annotations

import csv
import io
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autocompress import cli

ROOT = Path(__file__).parents[1]

MODEL = """
import torch
from torch import nn


class Tiny(nn.Module):
    def __init__(self, num_classes=10, channels=1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.linear = nn.Linear(16, num_classes)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.linear(x.mean((2, 3)))


class Branching(Tiny):
    def forward(self, x):
        if x.sum() > 0:
            return super().forward(x)
        return super().forward(-x)


class Unexportable(Tiny):
    def forward(self, x):
        return torch.lgamma(super().forward(x).exp())


class Product(nn.Module):
    # learns, and has no layer that a plan could change

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(64, 10) * 0.01)

    def forward(self, x):
        return x.flatten(1) @ self.matrix


class Weightless(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :10]


def no_number(outputs, targets):
    return float("nan")


def hits(outputs, targets):
    return (outputs.argmax(1) == targets).float().mean()


def failing(outputs, targets):
    raise ValueError("the loss is lost\\nsecond line")


def vector(outputs, targets):
    return (outputs.sum(1) - targets) ** 2


def one_argument(outputs):
    return outputs.mean()


def raises():
    raise ValueError("no such size")


def no_module():
    return 3
"""

STUDY = """
[study]
name = "tiny"
trials = 4

[model]
source = "model.py:Tiny"

[data]
source = "sklearn:digits"
image_size = 8
calibration_examples = 64

[baseline]
steps = 120

[training]
steps = 6
batch_size = 64

[space]
precision = ["w8a8", "w4a8"]
sparsity = [0.0, 0.5]
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "study.toml").write_text(STUDY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AUTOCOMPRESS_DATA", raising=False)
    return tmp_path


@pytest.fixture
def run_cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["autocompress", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call


def refused(result: tuple[int, str, str], *fragments: str) -> None:
    status, _, error = result
    assert status == 2, error
    lines = error.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("autocompress: "), error
    for fragment in fragments:
        assert fragment in error, f"{fragment!r} is not in {error!r}"


def edited(place: Path, old: str, new: str) -> str:
    text = (place / "study.toml").read_text()
    assert old in text
    (place / "study.toml").write_text(text.replace(old, new))
    return "study.toml"


@pytest.mark.parametrize(
    ("old", "new", "fragments"),
    [
        ("trials = 4", "trails = 4", ["study.trails", "did you mean trials"]),
        ("[space]", "[spcae]", ["spcae", "did you mean space"]),
        ("trials = 4", 'trials = "many"', ["study.trials", "many"]),
        ("trials = 4", "trials = 0", ["study.trials", "0"]),
        ("steps = 6", "steps = -6", ["training.steps", "-6"]),
        ('name = "tiny"', 'name = "../../escape"', ["study.name", "../../escape"]),
        ('name = "tiny"', "name = 'tiny", ["TOML"]),
        ('"w8a8", "w4a8"', '"w8a8", "w5a8"', ["space.precision", "w5a8"]),
        ('source = "sklearn:digits"', 'source = "imagefolder:nowhere"', ["nowhere"]),
        ('source = "sklearn:digits"', 'source = "sklearn:digit"', ["digits"]),
        ('"model.py:Tiny"', '"model.py:Tinny"', ["did you mean Tiny"]),
        ('"model.py:Tiny"', '"modle.py:Tiny"', ["modle.py"]),
        ('"model.py:Tiny"', '"no_such_package.models:tiny"', ["no_such_package"]),
        ('"model.py:Tiny"', '"model.py:raises"', ["no such size"]),
        ('"model.py:Tiny"', '"model.py:no_module"', ["int"]),
        ('"model.py:Tiny"', '"model.py:Branching"', ["traceable", "model.py line 23 (if x.sum() > 0:)"]),
        ('"model.py:Tiny"', '"model.py:Weightless"', ["something to decide", "no weights"]),
        ("[baseline]", '[task]\nmetric = "model.py:no_number"\n[baseline]', ["no_number", "nan"]),
        ("[baseline]", '[task]\nmetric = "model.py:failing"\n[baseline]', ["failing", "the loss is lost", "[8, 10]"]),
        ("[baseline]", '[task]\nmetric = "model.py:missing"\n[baseline]', ["missing", "model.py"]),
        ("[baseline]", '[task]\nloss = "model.py:failing"\n[baseline]', ["task.metric", "missing"]),
        ("[baseline]", '[task]\nlosss = "model.py:failing"\n[baseline]', ["did you mean loss"]),
        ('"model.py:Tiny"\n', '"model.py:Tiny"\narguments = { channels = 3 }\n', ["channels"]),
        ('"model.py:Tiny"\n', '"model.py:Tiny"\narguments = { num_classes = 7 }\n', ["10 classes"]),
        ('"model.py:Tiny"\n', '"model.py:Tiny"\nweights = "missing.pt"\n', ["missing.pt"]),
        ("precision = ", 'model_space = "model.py:Tiny"\nprecision = ', ["model space"]),
        ("precision = ", "drop_block = true\nprecision = ", ["did you mean drop_blocks"]),
    ],
)
def test_a_wrong_study_file_is_one_line_and_leaves_nothing(
    place: Path, run_cli: Callable[..., tuple[int, str, str]], old: str, new: str, fragments: list[str]
) -> None:
    refused(run_cli("search", edited(place, old, new)), *fragments)
    assert not (place / "runs").exists()
    assert not (place.parent / "escape").exists()


def test_a_model_that_cannot_be_exported_is_refused(place: Path, run_cli: Callable[..., tuple[int, str, str]]) -> None:
    study = edited(place, "model.py:Tiny", "model.py:Unexportable")
    edited(place, "steps = 120", "steps = 1")
    refused(run_cli("search", study), "export")
    assert not (place / "runs").exists()


@pytest.mark.parametrize(
    ("loss", "fragments"),
    [
        ("failing", ["failing", "ValueError", "the loss is lost", "[8]", "correct task.loss"]),
        ("vector", ["vector", "scalar"]),
        ("no_number", ["no_number"]),
        ("one_argument", ["one_argument", "TypeError"]),
        ("gone", ["gone", "loss"]),
    ],
)
def test_a_loss_that_is_none_is_one_line(
    place: Path, run_cli: Callable[..., tuple[int, str, str]], loss: str, fragments: list[str]
) -> None:
    task = f'[task]\nloss = "model.py:{loss}"\nmetric = "model.py:hits"\n[baseline]'
    refused(run_cli("search", edited(place, "[baseline]", task)), *fragments)
    assert not (place / "runs").exists()


def test_a_model_that_no_decision_can_change_is_refused_with_the_reason(
    place: Path, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    study = edited(place, "model.py:Tiny", "model.py:Product")
    refused(run_cli("search", study), "something to decide", "matrix", "alone reads it")
    assert not (place / "runs").exists()


def test_a_base_no_better_than_chance_is_refused(place: Path, run_cli: Callable[..., tuple[int, str, str]]) -> None:
    study = edited(place, "steps = 120", "steps = 1\nlearning_rate = 1e-9")
    refused(run_cli("search", study), "chance")
    assert not (place / "runs").exists()


def test_weights_that_do_not_fit_or_are_not_safe_are_refused(
    place: Path, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    study = edited(place, '"model.py:Tiny"\n', '"model.py:Tiny"\nweights = "w.pt"\n')
    torch.save({"conv1.weight": torch.zeros(1)}, place / "w.pt")
    refused(run_cli("search", study), "fit")

    class Trap:
        def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
            return Path.touch, (str(place / "executed"),)  # type: ignore[return-value]

    with (place / "w.pt").open("wb") as file:
        pickle.dump({"conv1.weight": Trap()}, file)
    refused(run_cli("search", study), "state_dict")
    assert not (place / "executed").exists()


def images(folder: Path, classes: int, count: int) -> None:
    for number in range(classes):
        (folder / f"class{number}").mkdir(parents=True)
        for index in range(count):
            Image.fromarray(np.full((8, 8, 3), number * 20 + index, np.uint8)).save(
                folder / f"class{number}/{index}.png"
            )


@pytest.mark.parametrize("spoil", ["empty class", "broken image"])
def test_spoilt_image_folders_are_refused(
    place: Path, run_cli: Callable[..., tuple[int, str, str]], spoil: str
) -> None:
    images(place / "set/train", 3, 40)
    images(place / "set/test", 3, 5)
    if spoil == "empty class":
        (place / "set/train/class9").mkdir()
    else:
        (place / "set/train/class1/7.png").write_bytes(b"not an image")
    study = edited(place, 'source = "sklearn:digits"', 'source = "imagefolder:set"')
    refused(run_cli("search", study), "class9" if spoil == "empty class" else "7.png")
    assert not (place / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["search", "nowhere.toml"], ["nowhere.toml"]),
        (["search", "study.toml", "--timeout", "soon"], ["timeout", "soon"]),
        (["search", "study.toml", "--trials", "0"], ["trials"]),
        (["search", "study.toml", "--storage", "nonsense"], ["--storage"]),
        (["search", "study.toml", "--storage", "postgresql://127.0.0.1:1/none"], ["--storage"]),
        (["search", "study.toml", "--tirals", "3"], ["--tirals"]),
        (["front", "nowhere"], ["nowhere"]),
        (["report", "nowhere"], ["nowhere"]),
        (["export", "nowhere", "--trial", "1", "-o", "x"], ["nowhere"]),
        (["verify", "nowhere"], ["nowhere"]),
        (["check", "nowhere.toml"], ["nowhere.toml"]),
        (["search", "study.toml", "--out", "model.py/run"], ["model.py", "correct the path"]),
        (["front", "model.py/run"], ["model.py"]),
        (["serach"], ["serach"]),
        ([], ["ommand", "--help"]),
    ],
)
def test_wrong_arguments_are_one_line(
    place: Path, run_cli: Callable[..., tuple[int, str, str]], arguments: list[str], fragments: list[str]
) -> None:
    refused(run_cli(*arguments), *fragments)
    assert sorted(p.name for p in place.iterdir() if p.name != "__pycache__") == ["model.py", "study.toml"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    (folder / "model.py").write_text(MODEL)
    (folder / "study.toml").write_text(STUDY)
    command = [sys.executable, "-m", "autocompress", "search", "study.toml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "\x1b[" not in done.stdout  # plain lines where there is no terminal
    assert "report: runs/tiny/report.html" in done.stdout
    return folder


@pytest.fixture
def in_finished(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(finished)
    return finished


def test_front_prints_the_promised_keys(in_finished: Path, run_cli: Callable[..., tuple[int, str, str]]) -> None:
    status, text, _ = run_cli("front", "runs/tiny", "--format", "json")
    members = json.loads(text)
    assert status == 0 and members
    promised = "trial val_accuracy test_accuracy size_bytes latency_ms latency_speedup size_ratio h artifact"
    for member in members:
        assert set(promised.split()) <= set(member)
        assert Path(member["artifact"]).stat().st_size == member["size_bytes"]
        assert 0 <= member["test_accuracy"] <= 1
    status, text, _ = run_cli("front", "runs/tiny", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert status == 0 and [int(r["trial"]) for r in rows] == [m["trial"] for m in members]
    status, text, _ = run_cli("front", "runs/tiny")
    assert status == 0 and all(str(m["trial"]) in text for m in members)


def test_report_can_be_written_elsewhere(in_finished: Path, run_cli: Callable[..., tuple[int, str, str]]) -> None:
    status, text, _ = run_cli("report", "runs/tiny", "-o", "elsewhere.html")
    assert status == 0 and text.strip() == "elsewhere.html"
    assert "<html" in Path("elsewhere.html").read_text()
    refused(run_cli("report", "runs/tiny", "-o", "no/such/folder.html"), "no/such")
    before = sorted(in_finished.iterdir())
    refused(run_cli("report", "runs/tiny", "-o", "runs"), "runs is a folder", "runs/report.html")
    assert sorted(in_finished.iterdir()) == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("measurement.json", b'{"size_bytes": '),
        ("measurement.json", None),
        ("facts.json", b""),
        ("analysis.json", b"\xff"),
        ("validation_answers.npy", b"\x93NUMPY"),
        ("weights.safetensors", b"{}"),
    ],
)
def test_a_damaged_baseline_is_named(
    in_finished: Path,
    tmp_path: Path,
    run_cli: Callable[..., tuple[int, str, str]],
    name: str,
    content: bytes | None,
) -> None:
    run = tmp_path / "run"
    shutil.copytree("runs/tiny", run)
    path = run / "baseline" / name
    path.unlink() if content is None else path.write_bytes(content)
    refused(
        run_cli("search", "study.toml", "--out", str(run)),
        str(path),
        "missing" if content is None else "damaged",
        "another folder",
    )
    if name != "validation_answers.npy" and name != "weights.safetensors":  # which only a search reads
        refused(run_cli("report", str(run)), str(path))


def test_an_exported_member_runs_and_verifies(
    in_finished: Path, run_cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    out = tmp_path / "ship"
    assert (
        run_cli("export", "runs/tiny", "--best", "max latency_speedup where val_accuracy > 0.2", "-o", str(out))[0] == 0
    )
    card = json.loads((out / "card.json").read_text())
    session = __import__("onnxruntime").InferenceSession(out / "model.onnx")
    assert session.get_inputs()[0].name == card["inputs"][0]["name"]
    assert run_cli("verify", str(out))[0] == 0
    assert run_cli("verify", str(out), "--study", "study.toml")[0] == 0
    content = bytearray((out / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (out / "model.onnx").write_bytes(bytes(content))
    status, text, error = run_cli("verify", str(out))
    assert status == 1 and "FAILED" in text and len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--trial", "999"], "999"),
        (["--best", "max latency_speedup where"], "where"),
        (["--best", "max test_accuracy"], "test"),
        (["--best", "max h where test_drop_points < 1"], "test"),
        (["--best", "max latency_sped"], "latency_speedup"),
        (["--best", "max h where val_accuracy > 2"], "val_accuracy > 2"),
        (["--best", "__import__('os').system('touch executed')"], "__import__"),
        ([], "--trial"),
        (["--trial", "0", "--best", "max h"], "--trial"),
    ],
)
def test_a_wrong_export_is_one_line_and_leaves_nothing(
    in_finished: Path,
    run_cli: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    arguments: list[str],
    fragment: str,
) -> None:
    refused(run_cli("export", "runs/tiny", *arguments, "-o", str(tmp_path / "out")), fragment)
    assert not (tmp_path / "out").exists() and not Path("executed").exists()


def test_a_run_of_another_study_is_refused(in_finished: Path, run_cli: Callable[..., tuple[int, str, str]]) -> None:
    (in_finished / "other.toml").write_text(STUDY.replace("steps = 6", "steps = 7"))
    refused(run_cli("search", "other.toml"), "training.steps", "6", "7")
    (in_finished / "somewhere").mkdir(exist_ok=True)
    refused(run_cli("search", "study.toml", "--out", "somewhere"), "study.toml")


def test_a_second_search_of_a_finished_run_adds_nothing(
    in_finished: Path, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    before = sorted(p.name for p in Path("runs/tiny/trials").iterdir())
    assert run_cli("search", "study.toml")[0] == 0
    assert sorted(p.name for p in Path("runs/tiny/trials").iterdir()) == before


def test_check_reports_and_leaves_nothing(place: Path, run_cli: Callable[..., tuple[int, str, str]]) -> None:
    edited(place, "[space]", "[limits]\nmax_size_bytes = 10\nmin_speedup = 0.001\n[space]")
    status, text, _ = run_cli("check", "study.toml")
    assert status == 0
    for fragment in (
        "10 classes",
        "prunable groups",
        "training it for 120 steps",
        "CANNOT be met",
        "can be met",
        "trials take",
    ):
        assert fragment in text
    assert not (place / "runs").exists()


@pytest.mark.parametrize("code", ["import autocompress", "import autocompress.cli"])
def test_the_command_line_imports_nothing_heavy(code: str) -> None:
    program = (
        f"{code}; import sys; print([m for m in ('torch', 'optuna', 'pandas', 'plotly', 'nni') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
