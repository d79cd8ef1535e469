"""Which networks go the whole road: analysed, changed by a random plan, exported, compared, measured.

    python -m benchmarks.models [NAME ...] [--out docs/models.md] [--seed 0]

Each network of :mod:`benchmarks.networks` (random weights, calibrated so that its answers vary) gets one plan
drawn at random over blocks, channel groups and precisions, at least 30 % of its parameters removed where what was
found allows it, and a short training, because a network that lost channels at random answers the same for every
input. A row is written as soon as it is known; with names, only those rows of an existing table are replaced.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import torch

from autocompress.analysis import Analysis, analyse
from autocompress.compression.distillation import Acceleration, Teacher
from autocompress.config import SpaceSection, TargetSection, TrainingSection
from autocompress.deploy.measure import measure_bytes
from autocompress.deploy.saturation import saturates
from autocompress.engine.baseline import measure_latency
from autocompress.engine.space import PerLayer, Space
from autocompress.errors import AutocompressError, first_line
from autocompress.layers import parameter_count
from autocompress.pipeline import Bench, build_network, draft, finish, parity
from autocompress.plan import Plan, Precision, TrainingSpec
from autocompress.stage_clock import StageClock
from benchmarks.networks import NETWORKS, prepared

STEPS = 240
"""A network that lost nine tenths of its weights answers nearly the same for every input after 60, and answers that are nearly equal
differ by the rounding of a processor."""
LEAST_REMOVED = 0.3
DRAWS = 12
SECTION = SpaceSection(
    sparsity=(0.25, 0.5, 0.75),
    precision=(Precision.FLOAT32, Precision.W8, Precision.W8A8, Precision.W8A8_DYNAMIC, Precision.W6A8, Precision.W4A8),
)
TRAINING = TrainingSection(steps=STEPS, batch_size=32, learning_rate=0.01, views=1, quantized_fraction=0.5)


def measure_network(name: str, seed: int, folder: Path) -> dict[str, Any]:
    """All figures of one network; a failure is a figure too.

    Raises:
        AutocompressError: a step of the road fails.
    """
    started = time.perf_counter()
    model, data = prepared(name, seed)
    bench = Bench(model, data, TRAINING, SECTION.channel_multiple, threads=torch.get_num_threads())
    analysis = analyse(model, data.model_inputs(data.calibration, torch.arange(32)), data.axes)
    teacher = Teacher(model, data, TRAINING.views, Acceleration())
    bench = Bench(
        model, data, TRAINING, SECTION.channel_multiple, teacher=teacher, inner=analysis.inner, threads=bench.threads
    )
    plan = draw_plan(bench, analysis, seed)
    baseline, candidate = folder / f"{name}.baseline.onnx".replace(":", "_"), folder / f"{name}.onnx".replace(":", "_")
    draft(bench, build_network(bench, Plan()), Plan(), baseline, StageClock())
    base_parity = parity(bench, baseline, finish_plan(bench, Plan(), baseline), Plan())
    deployable = finish_plan(bench, plan, candidate)
    agreement = parity(bench, candidate, deployable, plan)
    network = build_network(bench, plan)
    latency = measure_latency(candidate, baseline, data, TargetSection())
    size = measure_bytes(candidate, baseline.stat().st_size)
    return {
        "network": name,
        "parameters": analysis.parameters,
        "blocks": sum(len(run.blocks) for run in analysis.runs),
        "groups": dict(Counter(group.kind for group in analysis.groups)),
        "layers": dict(Counter(layer.kind for layer in analysis.layers)),
        "removed": 1 - parameter_count(network) / analysis.parameters,
        "dropped": len(plan.architecture.dropped_blocks),
        "steps": STEPS,
        "precisions": dict(Counter(str(p) for p in plan.quantization.precisions.values())),
        "float_error": base_parity.relative_error,
        "parity": agreement.model_dump(exclude_none=True),
        "size_ratio": size.size_ratio,
        "latency_ratio": latency.ratio,
        "baseline_ms": latency.baseline_ms,
        "left_out": reasons(analysis),
        "seconds": round(time.perf_counter() - started, 1),
    }


def finish_plan(bench: Bench, plan: Plan, path: Path) -> Any:
    """Draft and train a plan; the network that simulates its file."""
    unfinished = draft(bench, build_network(bench, plan), plan, path, StageClock())
    deployable = finish(bench, unfinished, plan, path, path.with_suffix(".safetensors"), StageClock())
    path.with_suffix(".safetensors").unlink()
    return deployable


def draw_plan(bench: Bench, analysis: Analysis, seed: int) -> Plan:
    """The first of some random plans that removes enough parameters; else the one that removes most."""
    inputs, axes = bench.data.example_inputs(2), bench.data.axes
    space = Space(SECTION, TRAINING, analysis, inputs, "", seed, axes, saturates=saturates())
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    best: tuple[float, Plan] | None = None
    for number in range(DRAWS):
        plan = space.exact(space.suggest_plan(PerLayer(study.ask()), number))
        plan = plan.model_copy(update={"training": TrainingSpec(steps=STEPS)})
        removed = 1 - parameter_count(build_network(bench, plan)) / analysis.parameters
        if best is None or removed > best[0]:
            best = removed, plan
        if removed >= LEAST_REMOVED:
            return plan
    assert best is not None
    return best[1]


def reasons(analysis: Analysis) -> dict[str, int]:
    """How many things were left out for each reason; the classifier, whose outputs are the model's, goes unsaid."""
    counts = Counter(first_line(ValueError(reason)) for reason in analysis.left_out.values())
    counts.pop("its channels are the model's output", None)
    return dict(counts)


def row(figures: dict[str, Any]) -> str:
    """One line of the table."""
    if "failed" in figures:
        return f"| {figures['network']} | failed: {figures['failed']} |" + " |" * 9
    agreement = figures["parity"]
    same = (
        f"{agreement['top1_agreement']:.1%}" if "top1_agreement" in agreement else f"{agreement['relative_error']:.0e}"
    )
    cells = [
        figures["network"],
        f"{figures['parameters'] / 1e6:.2f}",
        f"{figures['blocks']}",
        _list(figures["groups"]),
        _list(figures["layers"]),
        f"{figures['removed']:.0%}, {figures['dropped']} blocks",
        f"{figures['float_error']:.0e}",
        same,
        f"{1 / figures['size_ratio']:.1f}x",
        f"{1 / figures['latency_ratio']:.2f}x of {figures['baseline_ms']:.3g} ms",
        "; ".join(f"{count}: {reason}" for reason, count in figures["left_out"].items()) or "nothing",
    ]
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def _list(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "none"


HEADER = """# Networks that were tried

Written by `python -m benchmarks.models`; [benchmarks/models.py](../benchmarks/models.py) says what is done. Random
weights; one random plan each; so sizes and speeds show that files are what they claim, not what a search finds.
*Removed* is the share of parameters that the candidate's network lacks. *Float* is the largest relative error of the
uncompressed file against PyTorch (at most 1e-4 passes), *parity* how often the candidate's file and PyTorch, which
simulates the same roundings, give the same answer (at least 99 %), or the relative error of a file without integer
kernels. Faster and smaller are against the uncompressed file in ONNX Runtime, one thread, batch 1.

| network | million parameters | blocks | groups | layers | removed | float | parity | smaller | faster | left out |
|---|---|---|---|---|---|---|---|---|---|---|
"""


def write_table(results: dict[str, dict[str, Any]], path: Path) -> None:
    """The page, and the figures beside it in JSON."""
    known = [results[name] for name in NETWORKS if name in results]
    enough = sum(figures.get("removed", 0) >= LEAST_REMOVED for figures in known)
    passed = sum("failed" not in figures for figures in known)
    steps = Counter(figures["steps"] for figures in known if "failed" not in figures)
    summary = (
        f"\n{passed} of {len(known)} pass; {enough} with {LEAST_REMOVED:.0%} or more of their parameters removed. "
        f"Steps of the short training: {', '.join(f'{n} ({count} networks)' for n, count in steps.most_common())}.\n"
    )
    path.write_text(HEADER + "\n".join(map(row, known)) + "\n" + summary, encoding="utf-8")
    path.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Measure what is asked for; write after each network."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of networks; all by default")
    parser.add_argument("--out", type=Path, default=Path("docs/models.md"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    kept = arguments.out.with_suffix(".json")
    results = json.loads(kept.read_text(encoding="utf-8")) if arguments.names and kept.is_file() else {}
    for name in arguments.names or NETWORKS:
        results[name] = _attempt(name, arguments.seed)
        write_table(results, arguments.out)
        print(row(results[name]), file=sys.stderr, flush=True)


def _attempt(name: str, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="autocompress-models-") as folder:
        try:
            return measure_network(name, seed, Path(folder))
        except (AutocompressError, RuntimeError) as error:
            return {"network": name, "failed": f"{type(error).__name__}: {first_line(error)}"}


if __name__ == "__main__":
    main()
