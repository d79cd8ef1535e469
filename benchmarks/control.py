"""The control of every claim: the base trained on for as many steps as the pick, uncompressed.

    python benchmarks/control.py runs/cifar10_resnet56 --steps 7000

Whatever more training alone would have brought is not the merit of a search.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from autocompress.engine.baseline import load_inputs, make_bench, restore_base, test_answers, validation_answers
from autocompress.engine.run_folder import open_run, read_facts, run_config
from autocompress.pipeline import answers, build_network, compare, draft, finish
from autocompress.plan import DistillationSpec, Plan, TrainingSpec
from autocompress.stage_clock import StageClock


def main() -> None:
    """Train, export and score the control; nothing is written into the run but the baseline's answers on test."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--steps", type=int, required=True, help="optimiser steps, as many as the pick had in all")
    arguments = parser.parse_args()
    run = open_run(arguments.run)
    inputs = load_inputs(run_config(run))
    digest = restore_base(run, inputs)
    bench = make_bench(run, inputs, read_facts(run))
    plan = Plan(distillation=DistillationSpec(alpha=0.0), training=TrainingSpec(steps=arguments.steps, start=digest))
    with tempfile.TemporaryDirectory() as folder:
        path, clock = Path(folder) / "model.onnx", StageClock()
        unfinished = draft(bench, build_network(bench, plan), plan, path, clock)
        finish(bench, unfinished, plan, path, Path(folder) / "weights.safetensors", clock)
        yardsticks = {"validation": validation_answers(run), "test": test_answers(run, bench)}
        for name, yardstick in yardsticks.items():
            split = getattr(inputs.data, name)
            accuracy = compare(inputs.data, split, answers(bench, path, split, plan), yardstick)
            low, high = accuracy.drop_interval_points()
            print(f"{name}: {accuracy.fraction:.2%}, drop {accuracy.drop_points:.2f} points [{low:.2f}, {high:.2f}]")
        print(f"{arguments.steps} steps in {clock.seconds['train']:.0f} s")


if __name__ == "__main__":
    main()
