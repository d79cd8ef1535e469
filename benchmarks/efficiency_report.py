"""The comparison of engines as figures, a page and two pictures."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from autocompress.candidate import Accuracy, Score
from autocompress.engine.pareto import REFERENCE_POINT
from autocompress.engine.run_folder import write_json
from autocompress.report.style import FRONT_COLOUR, INK, layout
from autocompress.report.verdict import CLAIM_DROP_POINTS
from benchmarks.efficiency_figures import (
    ENGINES,
    GRACE_S,
    EngineRun,
    MeasuredFile,
    SeedFigures,
    TestScore,
    file_front,
    final_volume,
    now,
    read_results,
    read_scores,
    seed_figures,
    tuned_runs,
    volume_history,
)
from benchmarks.front_picture import _FLAGS, _PAGE, SCALE

LEAST_VOLUME_RATIO = 1.15
MOST_TIME_FRACTION = 1 / 5

COLOURS = {"ladder": FRONT_COLOUR, "tpe": "#d96f32", "nsga2": "#6b7f3f", "sequential": "#7d5ba6"}
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
WIDTH, HEIGHT = 1120, 520


class HandRecipe(NamedTuple):
    """A file made by hand: figures against its own float32 baseline of 88.34 %."""

    name: str
    test_accuracy: float
    kilobytes: float
    speed_up: float


HAND_SOURCE = "hand recipes measured on another machine (AMX)"
HAND_BASELINE_ACCURACY = 0.8834
HAND_RECIPES = (
    HandRecipe("baseline int8", 0.8833, 1086, 2.2),
    HandRecipe("half of the internal channels pruned, distilled, float32", 0.8808, 1870, 1.4),
    HandRecipe("half of the internal channels pruned, distilled, int8", 0.8800, 663, 2.5),
    HandRecipe("5 of 9 blocks a stage, 30 % of internal channels pruned, distilled, float32", 0.8749, 1402, 1.7),
    HandRecipe("5 of 9 blocks a stage, 30 % of internal channels pruned, distilled, int8", 0.8749, 466, 3.6),
    HandRecipe("ModelOpt FastNAS to half of the FLOPs, distilled, int8", 0.8810, 807, 2.2),
    # its accuracy is the float32 network's, its size and speed are the int8 file's
    HandRecipe("student 0,1,2 blocks of 32,64,128 from scratch", 0.8668, 600, 9.0),
)


def report(arguments: argparse.Namespace) -> None:
    """Write the figures as JSON, a table as Markdown, and the two pictures."""
    runs, scores = read_results(arguments.out), read_scores(arguments.out)
    if not runs:
        sys.exit(f"a report needs results; {arguments.out} has none; run `all` first")
    by_seed: dict[int, dict[str, EngineRun]] = {}
    for run in runs:
        by_seed.setdefault(run.seed, {})[run.engine] = run
    figures = [seed_figures(seed, engines, scores) for seed, engines in by_seed.items()]
    control = read_control(arguments.control) if arguments.control is not None else {}
    tuned = [run for engine in ENGINES for run in tuned_runs(arguments.out, engine)]
    target: Path = arguments.to
    write_json(target.with_suffix(".json"), report_content(runs, figures, scores, control, tuned))
    target.with_suffix(".md").write_text(report_page(runs, figures, control, tuned), encoding="utf-8")
    pictures = {"volume": draw_volumes(runs), "front": draw_fronts(runs, scores, control)}
    for name, figure in pictures.items():
        write_picture(figure, target.with_name(f"{target.name}_{name}"), arguments.browser)


def report_content(
    runs: Sequence[EngineRun],
    figures: Sequence[SeedFigures],
    scores: Sequence[TestScore],
    control: Mapping[str, Mapping[str, float]],
    tuned: Sequence[EngineRun],
) -> dict[str, Any]:
    """Everything that the page and the pictures show."""
    tested = {(score.engine, score.seed, score.trial): score.accuracy for score in scores}

    def with_test(run: EngineRun, file: MeasuredFile) -> dict[str, Any]:
        accuracy = tested.get((run.engine, run.seed, file.trial))
        return file.model_dump(mode="json") | ({} if accuracy is None else {"test": test_figures(accuracy)})

    return {
        "date": now(),
        "reference_point": REFERENCE_POINT,
        "grace_s": GRACE_S,
        "seeds": [figure.model_dump(mode="json") for figure in figures],
        "runs": [
            run.model_dump(mode="json", exclude={"files"})
            | {
                "history": volume_history(run.counted),
                "files_measured": len(run.files),
                "files_counted": len(run.counted),
                "front": [with_test(run, file) for file in file_front(run.counted)],
            }
            for run in runs
        ],
        "tuned": [{"engine": r.engine, "steps": r.steps, "volume": final_volume(r.counted)} for r in tuned],
        "control": control,
        "hand_recipes": {"source": HAND_SOURCE, "files": [recipe._asdict() for recipe in HAND_RECIPES]},
    }


def test_figures(accuracy: Accuracy | Score) -> dict[str, Any]:
    """Accuracy and drop on test, with the paired 95 % interval of the drop."""
    return {
        "accuracy": accuracy.fraction,
        "drop_points": accuracy.drop_points,
        "drop_interval_points": accuracy.drop_interval_points(),
    }


test_figures.__test__ = False  # type: ignore[attr-defined]  # no test for pytest, which would collect the name


def read_control(path: Path) -> dict[str, dict[str, float]]:
    """What benchmarks/control.py printed: by split the accuracy, the drop and its interval, and the steps."""
    number = r"(-?\d+(?:\.\d+)?)"
    line = re.compile(rf"^(validation|test): {number}%, drop {number} points \[{number}, {number}\]", re.MULTILINE)
    text = path.read_text(encoding="utf-8")
    trained = re.search(r"^(\d+) steps in", text, re.MULTILINE)
    if trained is None:
        raise SystemExit(f"{path} must be what benchmarks/control.py printed, to its last line, which gives the steps")
    names, steps = ("accuracy", "drop_points", "low", "high", "steps"), trained[1]
    found = {split: dict(zip(names, map(float, (*row, steps)), strict=True)) for split, *row in line.findall(text)}
    return {split: figures | {"accuracy": figures["accuracy"] / 100} for split, figures in found.items()}


def report_page(
    runs: Sequence[EngineRun],
    figures: Sequence[SeedFigures],
    control: Mapping[str, Mapping[str, float]],
    tuned: Sequence[EngineRun],
) -> str:
    """The table of the benchmark as Markdown."""
    lines = ["# Search efficiency", "", *_machine_lines(runs), "", *_run_table(runs), ""]
    for figure in figures:
        own = [run for run in runs if run.seed == figure.seed]
        lines += [f"## Seed {figure.seed}", "", *_processor_lines(own)]
        lines += [*_claim_table(figure), "", *_pair_table(figure), ""]
    lines += ["## Beside it", "", *_beside_table(runs, control), ""]
    if tuned:
        budgets = "; ".join(f"{r.engine} {r.steps} steps: {final_volume(r.counted):.3f}" for r in tuned)
        lines += [f"Budgets a trial, tuned on seed {tuned[0].seed} in {tuned[0].minutes:g} minutes: {budgets}.", ""]
    return "\n".join(lines)


def _machine_lines(runs: Sequence[EngineRun]) -> list[str]:
    machines = sorted({f"{run.facts['cpu']}, {run.facts['cores']} cores" for run in runs})
    threads = sorted({str(run.facts["training_threads"]) for run in runs})
    sittings = [sitting for run in runs for sitting in run.sittings]
    dates = sorted(sitting.began[:10] for sitting in sittings) or ["unknown"]
    commits = sorted({sitting.commit for sitting in sittings})
    limits = sorted({json.dumps(run.limits) for run in runs})
    return [
        f"Machine: {'; '.join(machines)}; training threads {', '.join(threads)}. "
        f"{dates[0]} to {dates[-1]}. Commit {', '.join(commits)}.",
        "",
        f"Hypervolume of validation drop in points, ln size ratio and ln latency ratio, reference point "
        f"{REFERENCE_POINT}, of all measured files; limits on what is trained, for all engines: {'; '.join(limits)}.",
    ]


def _processor_lines(runs: Sequence[EngineRun]) -> list[str]:
    """A warning where the engines of one seed had different processors."""
    found: dict[str, list[str]] = {}
    for run in runs:
        found.setdefault(str(run.facts["cpu"]), []).append(run.engine)
    if len(found) < 2:
        return []
    told = "; ".join(f"{', '.join(engines)} on {cpu}" for cpu, engines in found.items())
    return [f"Wall times of this seed do not compare, because its engines ran on different processors: {told}.", ""]


def _run_table(runs: Sequence[EngineRun]) -> list[str]:
    lines = [
        "| engine | seed | minutes | steps a trial | files measured | hypervolume | wall, s | processor, s "
        "| peak memory, MB | sittings |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        wall_s, cpu_s = (sum(getattr(s, key) or 0.0 for s in run.sittings) for key in ("wall_s", "cpu_s"))
        killed = sum(sitting.ended is None for sitting in run.sittings)
        sittings = f"{len(run.sittings)}{f', {killed} killed' if killed else ''}"
        memory = max((s.peak_memory_mb for s in run.sittings if s.peak_memory_mb is not None), default=None)
        volume = final_volume(run.counted)
        cells = [run.engine, run.seed, f"{run.minutes:g}", run.steps, len(run.counted), f"{volume:.3f}"]
        peak = "unknown" if memory is None else f"{memory:.0f}"
        lines.append(_row([*cells, f"{wall_s:.0f}", f"{cpu_s:.0f}", peak, sittings]))
    return lines


def _claim_table(figure: SeedFigures) -> list[str]:
    """What was asked for against what was measured."""
    stock = figure.best_stock
    lines = ["| | asked for | measured |", "|---|---|---|"]
    if stock is not None and figure.volume_ratio is not None:
        volumes = f"{figure.volumes['ladder']:.3f} against {figure.volumes[stock]:.3f}"
        lines.append(_row([f"hypervolume, ladder against {stock}", f"at least {LEAST_VOLUME_RATIO}x",
                           f"{figure.volume_ratio:.3f}x: {volumes}"]))  # fmt: skip
        asked = f"at most {MOST_TIME_FRACTION:g} of the time"
        if figure.ladder_reached_s is None:
            reached = "never"
        else:
            reached = f"{figure.ladder_reached_s:.0f} s: {figure.fraction_of_budget:.3f} of the whole time"
            if figure.fraction_of_its_time is not None:
                reached += (
                    f", {figure.fraction_of_its_time:.3f} of the {figure.best_stock_took_s:.0f} s that {stock} took"
                )
        lines.append(_row([f"ladder reaches the final hypervolume of {stock}", asked, reached]))
    if figure.pairs:
        missing = sum(pair.ladder is None for pair in figure.pairs)
        median = "none" if figure.median_latency_ratio is None else f"{figure.median_latency_ratio:.3f}"
        lines.append(_row(["latency, ladder / sequential at equal accuracy and bytes, median", "reported",
                           f"{median}; no such file of the ladder for {missing} of {len(figure.pairs)}"]))  # fmt: skip
    lines.append(_row([f"pick: fastest with a validation drop of at most {CLAIM_DROP_POINTS:g}", "reported",
                       _pick_text(figure)]))  # fmt: skip
    return lines


def _pick_text(figure: SeedFigures) -> str:
    if figure.pick is None:
        return "none"
    text = (
        f"trial {figure.pick.trial}: {1 / figure.pick.latency_ratio:.2f}x faster, {1 / figure.pick.size_ratio:.2f}x "
        f"smaller ({figure.pick.size_bytes:,} bytes), validation drop {figure.pick.drop_points:.2f}"
    )
    if figure.pick_test is None:
        return f"{text}; test not read yet"
    low, high = figure.pick_test.drop_interval_points()
    return f"{text}, test drop {figure.pick_test.drop_points:.2f} [{low:.2f}, {high:.2f}]"


def _pair_table(figure: SeedFigures) -> list[str]:
    """Each trained front file of the sequential recipe with its counterpart."""
    if not figure.pairs:
        return []
    lines = ["| sequential: trial, drop, bytes, speed-up | ladder: trial, drop, bytes, speed-up | latency ratio |"]
    lines += ["|---|---|---|"]
    for pair in figure.pairs:
        ratio = "" if pair.latency_ratio is None else f"{pair.latency_ratio:.3f}"
        lines.append(_row([_file_text(pair.sequential), _file_text(pair.ladder), ratio]))
    return lines


def _file_text(file: MeasuredFile | None) -> str:
    if file is None:
        return "no file as accurate and as small"
    return f"{file.trial}, {file.drop_points:.2f}, {file.size_bytes:,}, {1 / file.latency_ratio:.2f}x"


def _control_name(figures: Mapping[str, float]) -> str:
    return f"control: the base trained on for {figures['steps']:,.0f} steps"


def _beside_table(runs: Sequence[EngineRun], control: Mapping[str, Mapping[str, float]]) -> list[str]:
    baseline = runs[0].baseline
    lines = ["| file | test accuracy (drop) | KB | speed-up |", "|---|---|---|---|"]
    for recipe in HAND_RECIPES:
        drop = 100 * (HAND_BASELINE_ACCURACY - recipe.test_accuracy)
        accuracy = f"{percent(recipe.test_accuracy)} ({drop:.2f})"
        lines.append(_row([recipe.name, accuracy, f"{recipe.kilobytes:g}", f"{recipe.speed_up:g}x"]))
    if "test" in control:
        test = control["test"]
        drop_text = f"{test['drop_points']:.2f} [{test['low']:.2f}, {test['high']:.2f}]"
        lines.append(_row([_control_name(test), f"{percent(test['accuracy'])} ({drop_text})", f"{baseline.size_bytes / 1000:.0f}", "1x"]))  # fmt: skip
    return [*lines, "", f"All but the control: {HAND_SOURCE}, each against its own float32 file."]


def _row(cells: Iterable[object]) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def draw_volumes(runs: Sequence[EngineRun]) -> go.Figure:
    """Hypervolume over wall time: a colour for each engine, a dash for each seed."""
    figure = go.Figure(layout=layout(HEIGHT))
    seeds = sorted({run.seed for run in runs})
    for run in runs:
        history = volume_history(run.counted)
        ends = max(run.minutes * 60, history[-1][0] if history else 0.0)
        # nothing at first, and what there is at the end stays
        steps = [(0.0, 0.0), *history, (ends, history[-1][1] if history else 0.0)]
        line = {
            "color": COLOURS[run.engine],
            "shape": "hv",
            "width": 2,
            "dash": DASHES[seeds.index(run.seed) % len(DASHES)],
        }
        x, y = [seconds / 60 for seconds, _ in steps], [volume for _, volume in steps]
        figure.add_scatter(x=x, y=y, mode="lines", name=f"{run.engine}, seed {run.seed}", line=line)
    figure.update_xaxes(title="wall time, minutes, everything counted", rangemode="tozero")
    figure.update_yaxes(title="hypervolume of measured files", rangemode="tozero")
    return figure


def draw_fronts(
    runs: Sequence[EngineRun], scores: Sequence[TestScore], control: Mapping[str, Mapping[str, float]]
) -> go.Figure:
    """Test drop against speed-up of the frozen fronts, beside what was made by hand."""
    figure = go.Figure(layout=layout(HEIGHT))
    seeds = sorted({run.seed for run in runs})
    symbols = ("circle", "circle-open", "square", "square-open")
    for run in runs:
        tested = {s.trial: s.accuracy for s in scores if (s.engine, s.seed) == (run.engine, run.seed)}
        files = [file for file in file_front(run.counted) if file.trial in tested]
        marker = {
            "color": COLOURS[run.engine],
            "size": 9,
            "symbol": symbols[seeds.index(run.seed) % len(symbols)],
        }
        figure.add_scatter(
            x=[1 / file.latency_ratio for file in files],
            y=[tested[file.trial].drop_points for file in files],
            text=[f"trial {file.trial}, {file.size_bytes / 1000:.0f} KB" for file in files],
            mode="markers", name=f"{run.engine}, seed {run.seed}", marker=marker,
        )  # fmt: skip
    figure.add_scatter(
        x=[recipe.speed_up for recipe in HAND_RECIPES],
        y=[100 * (HAND_BASELINE_ACCURACY - recipe.test_accuracy) for recipe in HAND_RECIPES],
        text=[f"{recipe.name}, {recipe.kilobytes:g} KB" for recipe in HAND_RECIPES],
        mode="markers", name=HAND_SOURCE, marker={"color": INK, "size": 10, "symbol": "diamond-open"},
    )  # fmt: skip
    if "test" in control:
        figure.add_scatter(
            x=[1.0], y=[control["test"]["drop_points"]], mode="markers", name=_control_name(control["test"]),
            marker={"color": INK, "size": 10, "symbol": "x"},
        )  # fmt: skip
    figure.update_xaxes(title="times faster than the uncompressed file", type="log")
    figure.update_yaxes(title="test drop, points", autorange="reversed")
    return figure


def write_picture(figure: go.Figure, path: Path, browser: str | None) -> Path:
    """A PNG where there is a Chromium to draw it, else a page that opens in any browser."""
    if browser is None:
        page = path.with_name(f"{path.name}.html")
        page.write_text(figure.to_html(include_plotlyjs=True), encoding="utf-8")
        return page
    picture = path.with_name(f"{path.name}.png")
    figure.update_layout(width=WIDTH, height=HEIGHT)
    drawing = figure.to_html(full_html=False, include_plotlyjs=False, config={"displayModeBar": False})
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "picture.html"
        page.write_text(_PAGE.format(script=get_plotlyjs(), figure=drawing), encoding="utf-8")
        options = [f"--user-data-dir={folder}/profile", f"--screenshot={picture.resolve()}"]
        options += [f"--window-size={WIDTH},{HEIGHT}", f"--force-device-scale-factor={SCALE}"]
        command = [browser, *_FLAGS, *options, "--virtual-time-budget=8000", page.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    return picture


def percent(fraction: float) -> str:
    """As it is shown."""
    return f"{100 * fraction:.2f} %"
