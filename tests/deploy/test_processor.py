"""What is said of the processor is what the system says."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from autocompress.deploy import processor
from autocompress.deploy.processor import decisive_instruction_sets, instruction_sets, processor_model

CPUINFO = Path("/proc/cpuinfo")


@pytest.mark.skipif(not CPUINFO.is_file(), reason="the system has no /proc/cpuinfo")
def test_instruction_sets_are_those_of_the_system() -> None:
    found = subprocess.run(["grep", "-m1", "-E", "^(flags|Features)", CPUINFO], capture_output=True, text=True)
    named = found.stdout.partition(":")[2].split()
    assert named and set(instruction_sets()) == set(named)
    assert set(decisive_instruction_sets()) <= set(named)


def test_brands_that_stand_for_several_models_are_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lines = "processor\t: 0\nmodel name\t: A Brand\ncpu family\t: 25\nmodel\t\t: {}\nflags\t\t: avx2 sse avx512f\n"
    for model in ("17", "1"):
        path = tmp_path / model
        path.write_text(lines.format(model), encoding="utf-8")
        monkeypatch.setattr(processor, "Path", lambda _, path=path: path)
        assert processor_model() == f"A Brand (family 25, model {model})"
        assert instruction_sets() == ["avx2", "avx512f", "sse"]
        assert decisive_instruction_sets() == ["avx2", "avx512f"]


def test_a_silent_system_gives_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processor, "Path", lambda _: tmp_path / "missing")
    assert processor_model()
    assert instruction_sets() == decisive_instruction_sets() == []
