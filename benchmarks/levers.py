"""Each lever of the ladder on its own, on a finished run of it.

    python -m benchmarks.levers --run RUN --out FILE [--levers shared solver guided table] [--steps 300]

- ``shared``: the same plans trained for as many steps from the shared weights, and as the plain engine begins.
- ``solver``: plans of the reference parametrisation that keep to the limits, drawn at random, against the solver's for the
  same bytes and latency; all trained as the plain engine does.
- ``guided``: as many plans drawn by TPE under the guided parametrisation as under that of every layer; hypervolume of
  what the shared weights score, with a reference point that lets all of them count.
- ``table``: seconds for bytes and latency of a plan by the tables, and for its draft and sitting in the run's trials.

Each figure is kept beside FILE as it is done, and a second call goes on from there. Nobody else may work on the run
meanwhile.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from autocompress.candidate import State
from autocompress.engine.estimating import beyond
from autocompress.engine.guided import Targets
from autocompress.engine.ladder import Ladder
from autocompress.engine.pareto import hypervolume
from autocompress.engine.run_folder import open_run, read_candidates, write_json
from autocompress.engine.sharing import LENIENT_REFERENCE
from autocompress.engine.space import PerLayer
from autocompress.plan import DistillationSpec, Plan
from benchmarks.fidelity import draw_plans, open_ladder, trained_drop

START_UP = 12
Entry = dict[str, Any]


def shared_pairs(ladder: Ladder, arguments: argparse.Namespace) -> Iterator[Callable[[], Entry]]:
    """Of each family some plans, each trained twice."""
    for family in ladder.families:
        drawn = draw_plans(ladder, arguments.seed, family)
        for plan, _ in zip(drawn, range(arguments.pairs), strict=False):

            def measure(plan: Plan = plan, family: str = family) -> Entry:
                shared = trained_drop(ladder, plan, arguments.steps)
                return {"family": family, "with": shared, "without": trained_drop(ladder, plan, arguments.steps, False)}

            yield measure


def solver_pairs(ladder: Ladder, arguments: argparse.Namespace) -> Iterator[Callable[[], Entry]]:
    """Random plans of the shrunken base, and the solver's plan for the bytes and latency of each."""
    drawn = draw_plans(ladder, arguments.seed, "base", is_guided=False)
    for number, plan in zip(range(arguments.pairs), drawn, strict=False):

        def measure(plan: Plan = plan, number: int = number) -> Entry:
            _, asked, _ = beyond(ladder, plan)
            bits = ladder.predictor.mean_stored_bits(plan)
            found = ladder.guide.base_plan(
                Targets(1 / asked.latency_ratio, 1 / asked.size_ratio, bits), DistillationSpec(), number
            )
            found = found.model_copy(update={"distillation": plan.distillation})
            _, solved, _ = beyond(ladder, found)
            entry = {
                "latency_ratio": (solved.latency_ratio, asked.latency_ratio),
                "size_ratio": (solved.size_ratio, asked.size_ratio),
            }
            drops = [trained_drop(ladder, p, arguments.steps, False) for p in (found, plan)]
            return entry | {"with": drops[0], "without": drops[1]}

        yield measure


def guided_pairs(ladder: Ladder, arguments: argparse.Namespace) -> Iterator[Callable[[], Entry]]:
    """Estimates under both parametrisations, from a few seeds."""
    for seed in range(arguments.seed, arguments.seed + 2):

        def measure(seed: int = seed) -> Entry:
            guided, direct = (_estimates(ladder, own, arguments.estimates, seed) for own in (True, False))
            return {
                "with": -guided["hypervolume"],
                "without": -direct["hypervolume"],
                "guided": guided,
                "direct": direct,
            }

        yield measure


def _estimates(ladder: Ladder, is_guided: bool, count: int, seed: int) -> Entry:
    """Ask, score, tell; what the tables rule out is told as that."""
    sampler = optuna.samplers.TPESampler(n_startup_trials=START_UP, seed=seed)
    study = optuna.create_study(directions=["minimize"] * 3, sampler=sampler)
    space = ladder.guide if is_guided else ladder.session.space
    worst, _, _ = LENIENT_REFERENCE
    points: list[tuple[float, float, float]] = []
    began = time.perf_counter()
    for number in range(count):
        trial = study.ask()
        plan = space.suggest_plan(PerLayer(trial), number)
        broken, estimate, amounts = beyond(ladder, plan)
        trial.set_constraint("limits", max(0.0, *amounts.values()) if broken else 0.0)
        drop = worst if broken else ladder.shared.score(plan)[1]
        point = drop, math.log(estimate.size_ratio), math.log(estimate.latency_ratio)
        points += [] if broken else [point]
        study.tell(trial, point)
    seconds = time.perf_counter() - began
    return {
        "plans": count,
        "within": len(points),
        "hypervolume": hypervolume(points, LENIENT_REFERENCE),
        "seconds": seconds,
    }


def table_seconds(ladder: Ladder, arguments: argparse.Namespace) -> Iterator[Callable[[], Entry]]:
    """Medians over the run's own candidates."""

    def measure() -> Entry:
        candidates = read_candidates(ladder.session.run)
        files = [c.stage_seconds for c in candidates if c.state is State.COMPLETE]
        guessed = [c.stage_seconds["predict"] for c in candidates if c.state is State.ESTIMATED]
        measured = statistics.median(s.get("export", 0.0) + s.get("time", 0.0) for s in files)
        return {"with": statistics.median(guessed), "without": measured, "plans": len(guessed), "files": len(files)}

    yield measure


LEVERS = {"shared": shared_pairs, "solver": solver_pairs, "guided": guided_pairs, "table": table_seconds}


def summary(entries: list[Entry]) -> Entry:
    """Mean difference of the pairs with its standard error; below zero the lever helps."""
    differences = np.array([entry["with"] - entry["without"] for entry in entries])
    error = float(differences.std(ddof=1) / len(differences) ** 0.5) if len(differences) > 1 else math.nan
    return {"pairs": len(entries), "difference": float(differences.mean()), "standard_error": error}


def main() -> None:
    """Measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="folder of a ladder's run")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--levers", nargs="+", choices=LEVERS, default=list(LEVERS))
    parser.add_argument("--steps", type=int, default=300, help="of each training")
    parser.add_argument("--pairs", type=int, default=4, help="of each family, or for the solver")
    parser.add_argument("--estimates", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1234)
    arguments = parser.parse_args()
    ladder = open_ladder(open_run(arguments.run))
    kept: dict[str, list[Entry]] = json.loads(arguments.out.read_text())["entries"] if arguments.out.is_file() else {}
    for lever in arguments.levers:
        done = kept.setdefault(lever, [])
        for number, measure in enumerate(LEVERS[lever](ladder, arguments)):
            if number < len(done):
                continue
            done.append(measure())
            print(lever, done[-1], flush=True)
            figures = {name: summary(entries) for name, entries in kept.items() if entries}
            write_json(arguments.out, {"steps": arguments.steps, "figures": figures, "entries": kept})
    for name, entries in kept.items():
        print(name, summary(entries))


if __name__ == "__main__":
    main()
