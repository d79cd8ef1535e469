"""docs/models.md is what benchmarks/models.py writes, and what it says holds."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from processors import exact

from autocompress.plan import Precision
from benchmarks import models
from benchmarks.networks import NETWORKS

PAGE = Path(__file__).parent.parent / "docs" / "models.md"


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(PAGE.with_suffix(".json").read_text(encoding="utf-8"))
    return found


def test_the_page_is_written_from_its_figures(results: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    models.write_table(results, tmp_path / "models.md")
    assert (tmp_path / "models.md").read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")


def test_every_network_goes_the_whole_road(results: dict[str, dict[str, Any]]) -> None:
    assert set(results) == set(NETWORKS)
    assert [name for name, figures in results.items() if "failed" in figures] == []


def test_most_networks_lose_parameters_for_real(results: dict[str, dict[str, Any]]) -> None:
    assert sum(figures["removed"] >= models.LEAST_REMOVED for figures in results.values()) >= 20


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs transformers")
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "gpt2", "audio", "lstm"])
def test_a_network_goes_the_road_again(name: str, results: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    again = models.measure_network(name, 0, tmp_path)  # raises where parity fails
    precisions = {str(exact(Precision(drawn))): count for drawn, count in results[name]["precisions"].items()}
    kept = results[name] | {"precisions": precisions}
    for key in ("parameters", "blocks", "groups", "layers", "removed", "precisions", "left_out"):
        assert again[key] == pytest.approx(kept[key]), key
    assert again["size_ratio"] == pytest.approx(kept["size_ratio"], rel=0.02)
