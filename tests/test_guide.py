"""The guide's example from Python runs word for word."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

GUIDE = Path(__file__).parent.parent / "docs" / "guide.md"


def example() -> str:
    """The fenced block below the marker."""
    after = GUIDE.read_text(encoding="utf-8").split("<!-- python-example -->", 1)[1]
    return after.split("```python\n", 1)[1].split("```", 1)[0]


@pytest.mark.slow
def test_the_example_from_python_searches_and_exports(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", example()], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "latency_speedup" in done.stdout
    assert (tmp_path / "report.html").stat().st_size > 100_000
    card = json.loads((tmp_path / "best" / "card.json").read_text(encoding="utf-8"))
    assert card["measurement"]["size_ratio"] < 0.5
