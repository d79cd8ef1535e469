"""A table sums, survives damage and other processes, and a correction finds what files really take."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autocompress.deploy import latency_table
from autocompress.deploy.latency_table import (
    CACHE_VARIABLE,
    Correction,
    Features,
    LatencyTable,
    cache_folder,
    fit_correction,
    machine_digest,
)
from autocompress.deploy.operator_timing import OperatorTimes
from autocompress.errors import ConfigError
from autocompress.operators import INT8, Operator

SHAPE = (1, 16, 8, 8)
ADDITION = Operator("add", "", "", (SHAPE, SHAPE), SHAPE)
LAYER = Operator("conv2d", "a", "a", (SHAPE,), SHAPE, (16, 16, 3, 3), (1, 1), (1, 1), (1, 1))
INTEGER = LAYER.computed_in(INT8)
RATIOS = {ADDITION.key: 0.5, LAYER.key: 4.0, INTEGER.key: 1.5}
REFERENCE_MS, RUN_MS = 0.02, 0.005


@pytest.fixture(autouse=True)
def timed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """No process is started; what it would have been asked for."""
    asked: list[list[str]] = []

    def pretend(operators: Sequence[Operator], threads: int) -> OperatorTimes:
        asked.append([operator.key for operator in operators])
        return OperatorTimes(REFERENCE_MS, RUN_MS, tuple(RATIOS.get(operator.key, 1.0) for operator in operators))

    monkeypatch.setattr(latency_table, "time_operators", pretend)
    return asked


# --- the table ----------------------------------------------------------------------------------------------


def test_each_key_is_measured_once_and_for_good(timed: list[list[str]], tmp_path: Path) -> None:
    table = LatencyTable(1, tmp_path)
    twin = replace(LAYER, layer="b", module="elsewhere")
    assert table.fill([LAYER, twin, ADDITION, LAYER]) == 2
    assert timed == [[LAYER.key, ADDITION.key]]
    assert table.fill([twin]) == 0
    again = LatencyTable(1, tmp_path)
    assert again.missing([LAYER, ADDITION, INTEGER]) == [INTEGER]
    assert again.fill([LAYER, INTEGER]) == 1
    assert timed[1:] == [[INTEGER.key]]


def test_sums_are_additive(tmp_path: Path) -> None:
    table = LatencyTable(1, tmp_path)
    parts = [[LAYER, ADDITION], [INTEGER, INTEGER, ADDITION]]
    table.fill(parts[0] + parts[1])
    assert table.operator_ms(LAYER) == pytest.approx(4.0 * REFERENCE_MS)
    assert table.latency_ms(parts[0] + parts[1]) == pytest.approx(sum(table.latency_ms(part) for part in parts))
    assert table.latency_ms([]) == 0
    features = table.features(parts[0] + parts[1])
    assert features.vector() == pytest.approx(np.array([4.0, 3.0, 1.0, RUN_MS / REFERENCE_MS]) * REFERENCE_MS)
    assert features.total_ms == pytest.approx(table.latency_ms(parts[0] + parts[1]) + RUN_MS)


def test_what_was_not_measured_has_no_latency(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="call fill"):
        LatencyTable(1, tmp_path).operator_ms(LAYER)


@pytest.mark.parametrize(
    "damage",
    [
        "", "{", "[1, 2]", "null", '{"reference_ms": "fast"}', '{"reference_ms": 0.1, "run_ms": 0, "ratios": [1]}',
        '{"reference_ms": 0, "run_ms": 0, "ratios": {}}', '{"reference_ms": NaN, "run_ms": 0, "ratios": {}}',
    ],
)  # fmt: skip
def test_a_damaged_file_is_measured_again(damage: str, timed: list[list[str]], tmp_path: Path) -> None:
    table = LatencyTable(1, tmp_path)
    table.fill([LAYER])
    table.path.write_text(damage)
    again = LatencyTable(1, tmp_path)
    assert again.fill([LAYER]) == 1
    assert len(timed) == 2
    assert LatencyTable(1, tmp_path).operator_ms(LAYER) == table.operator_ms(LAYER)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/cache.*AUTOCOMPRESS_CACHE"):
        LatencyTable(1, tmp_path / "file" / "cache").fill([LAYER])


def test_a_damaged_entry_costs_that_entry(tmp_path: Path) -> None:
    table = LatencyTable(1, tmp_path)
    table.fill([LAYER, ADDITION])
    content = json.loads(table.path.read_text())
    content["ratios"][LAYER.key] = -3.0
    table.path.write_text(json.dumps(content))
    assert LatencyTable(1, tmp_path).missing([LAYER, ADDITION]) == [LAYER]


def test_two_that_fill_at_once_lose_nothing(tmp_path: Path) -> None:
    first, second = LatencyTable(1, tmp_path), LatencyTable(1, tmp_path)
    first.fill([LAYER])
    second.fill([ADDITION])  # knew of nothing when it was opened
    assert not LatencyTable(1, tmp_path).missing([LAYER, ADDITION])
    assert not second.missing([LAYER, ADDITION])
    many = [replace(ADDITION, output=(1, 16, 8, size)) for size in range(24)]
    tables = [LatencyTable(1, tmp_path) for _ in range(8)]
    workers = [threading.Thread(target=t.fill, args=(many[n::8],)) for n, t in enumerate(tables)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not LatencyTable(1, tmp_path).missing([LAYER, ADDITION, *many])


def test_milliseconds_do_not_change_with_a_later_fill(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table = LatencyTable(1, tmp_path)
    table.fill([LAYER])
    before = table.operator_ms(LAYER)
    slow = OperatorTimes(2 * REFERENCE_MS, 2 * RUN_MS, (0.5,))  # the machine's clock is halved meanwhile
    monkeypatch.setattr(latency_table, "time_operators", lambda operators, threads: slow)
    table.fill([ADDITION])
    assert table.operator_ms(LAYER) == before
    assert table.operator_ms(ADDITION) == pytest.approx(before / 8)


def test_a_table_belongs_to_its_threads(tmp_path: Path) -> None:
    LatencyTable(1, tmp_path).fill([LAYER])
    assert LatencyTable(2, tmp_path).missing([LAYER]) == [LAYER]
    assert machine_digest(1) == machine_digest(1) != machine_digest(2)


def test_tables_are_kept_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "autocompress" / "latency"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "autocompress" / "latency"
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "own"))
    table = LatencyTable(1)
    table.fill([LAYER])
    assert table.path.parent == tmp_path / "own" / "latency" and table.path.is_file()


# --- the correction -----------------------------------------------------------------------------------------

BASELINE = Features(float_layers_ms=1.2, integer_layers_ms=0.0, others_ms=0.1, run_ms=0.005)


def drawn(count: int, seed: int = 0) -> list[Features]:
    rng = np.random.default_rng(seed)
    amounts = rng.uniform([0.0, 0.05, 0.005], [0.4, 0.5, 0.2], (count, 3))
    return [Features(*(float(amount) for amount in row), run_ms=0.005) for row in amounts]


def measured(weights: tuple[float, ...], features: Features, noise: float = 0.0) -> float:
    return float(np.array(weights) @ features.vector()) * (1 + noise)


def test_without_pairs_it_is_the_plain_sum() -> None:
    correction = fit_correction(BASELINE, [])
    candidate = drawn(1)[0]
    assert correction.ratio(BASELINE) == pytest.approx(1.0)
    assert correction.ratio(candidate) == pytest.approx(candidate.total_ms / BASELINE.total_ms)


def test_many_pairs_recover_known_weights() -> None:
    true = (0.7, 1.1, 0.9, 0.8)
    files = drawn(400)
    rng = np.random.default_rng(1)
    noise = 0.02 * rng.standard_normal(len(files))
    fitted = fit_correction(BASELINE, [(f, measured(true, f, n)) for f, n in zip(files, noise, strict=True)])
    assert fitted.weights[:3] == pytest.approx(true[:3], rel=0.03)
    errors = [fitted.ratio(f) / measured(true, f) - 1 for f in drawn(50, seed=2)]
    assert max(map(abs, errors)) < 0.03


def test_one_pair_settles_the_scale_and_nothing_else() -> None:
    (candidate,) = drawn(1)
    plain = fit_correction(BASELINE, [])
    fitted = fit_correction(BASELINE, [(candidate, 1.3 * plain.ratio(candidate))])
    assert fitted.weights == pytest.approx(tuple(1.3 * weight for weight in plain.weights))


def test_pairs_come_out_better_the_more_there_are() -> None:
    true = (0.9, 0.6, 1.8, 0.5)
    tested = drawn(100, seed=3)

    def error(count: int) -> float:
        fitted = fit_correction(BASELINE, [(f, measured(true, f)) for f in drawn(count, seed=4)])
        return float(np.median([abs(fitted.ratio(f) / measured(true, f) - 1) for f in tested]))

    assert error(0) > error(4) > error(60)
    assert error(60) < 0.02


def test_no_weight_is_negative() -> None:
    files = drawn(60)
    fitted = fit_correction(BASELINE, [(f, 0.5 + 0.1 * f.integer_layers_ms / (0.1 + f.others_ms)) for f in files])
    assert all(weight >= 0 for weight in fitted.weights)


def test_latencies_are_positive() -> None:
    with pytest.raises(ValueError, match="positive"):
        fit_correction(BASELINE, [(drawn(1)[0], 0.0)])
    with pytest.raises(ValueError, match="positive"):
        fit_correction(Features(0.0, 0.0, 0.0, 0.0), [])


def test_a_ratio_is_a_weighted_sum() -> None:
    assert Correction((1.0, 0.5, 2.0, 1.0)).ratio(Features(0.1, 0.2, 0.05, 0.01)) == pytest.approx(0.31)
