"""How well a plan's score on the shared weights ranks what it is worth when it is trained.

    python -m benchmarks.fidelity --run RUN --out FILE [--plans 30] [--limits study] [--family base]
        [--below 5] [--steps N]

RUN is a finished run of the ladder. Plans are drawn anew by the guided parametrisation at random, scored by the run's
shared weights as they are (F1), then each is trained from them for as many steps as the study gives a trial, exported,
and its file scored on validation (F3). The run's own pairs and curves correct the score, as when the ladder promotes;
what the score says alone stands beside it. ``--limits reference`` draws from all that is smaller and faster than the
uncompressed file, whatever the limits of the study, and ``--limits between`` from halfway to those, in logarithms;
``--family`` from one family alone.
Kendall's rank correlation is over the plans whose file loses less than ``--below`` points, with a percentile bootstrap interval
over plans (Efron 1979). Each plan is kept beside FILE as it is done, and a second call goes on from there, with plans
of other limits too. Nobody else may work on the run meanwhile.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from safetensors.torch import load_file
from scipy.stats import kendalltau

from autocompress.candidate import Candidate, Origin, State
from autocompress.config import LimitsSection
from autocompress.engine.baseline import load_inputs
from autocompress.engine.estimating import beyond
from autocompress.engine.events import Silent
from autocompress.engine.ladder import Ladder, make_ladder
from autocompress.engine.run_folder import RunFolder, open_run, read_analysis, read_candidates, run_config, write_json
from autocompress.engine.sharing import OfFamily
from autocompress.engine.space import PerLayer
from autocompress.engine.study import open_session
from autocompress.errors import TrialFailed
from autocompress.pipeline import answers, build_network, compare, draft, finish
from autocompress.plan import Plan, TrainingSpec
from autocompress.stage_clock import StageClock
from benchmarks.efficiency_figures import REFERENCE_LIMITS

LARGEST_DROP_POINTS = 5.0
RESAMPLES = 10_000


def open_ladder(run: RunFolder, limits: str = "study") -> Ladder:
    """The ladder of a run, with its tables and shared weights, under the limits of its study or under others."""
    config = run_config(run)
    config = config.model_copy(update={"limits": limits_of(config.limits, limits)})
    session = open_session(config, run, load_inputs(config), Silent(), None, "fidelity", 0)
    ladder = make_ladder(session, read_analysis(run))
    if not isinstance(ladder, Ladder):
        raise SystemExit(f"fidelity: the run has no ladder, because {ladder}")
    ladder.predictor.fit_(read_candidates(run))
    return ladder


def limits_of(study: LimitsSection, name: str) -> LimitsSection:
    """The limits under which plans are drawn; those of the reference point are no smaller and no slower than the base."""
    if name == "study":
        return study
    if name == "reference":
        return REFERENCE_LIMITS
    # in logarithms, halfway to a ratio of 1 is the root; a study without a limit lets as much pass
    size, speedup = math.sqrt(study.max_size_ratio or 1.0), math.sqrt(study.min_speedup or 1.0)
    return study.model_copy(update={"max_size_ratio": size, "min_speedup": speedup})


def draw_plans(ladder: Ladder, seed: int, family: str | None = None, is_guided: bool = True) -> Iterator[Plan]:
    """Endless random plans that the tables let pass, no two alike; of all families or of one, by the guide or layer by
    layer.
    """
    seen: set[str] = set()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    space = ladder.guide if is_guided else ladder.session.space
    for number in itertools.count():
        trial = study.ask()
        plan = space.suggest_plan(PerLayer(trial) if family is None else OfFamily(trial, family), number)
        if plan.decisions not in seen and not beyond(ladder, plan)[0]:
            seen.add(plan.decisions)
            yield plan


def corrected_drop(ladder: Ladder, plan: Plan, divergence: float, steps: int, number: int) -> float:
    """Validation drop in points that the ladder expects of a plan after so many steps."""
    candidates, family = read_candidates(ladder.session.run), plan.architecture.family
    curves = ladder.curves(candidates)
    short = ladder.expectation(candidates).drop_points(divergence, ladder.macs_ratio(plan), family)
    drawn = Candidate(trial=-1 - number, origin=Origin.SAMPLED, state=State.ESTIMATED, plan=plan)
    return curves.drop_at(drawn, short, curves.usual_steps[family], steps)


def trained_drop(ladder: Ladder, plan: Plan, steps: int, is_shared: bool = True) -> float:
    """Validation drop in points of a plan's file, trained from the shared weights, or as the plain engine does."""
    bench = ladder.session.bench
    with tempfile.TemporaryDirectory() as folder:
        path, start = Path(folder) / "model.onnx", Path(folder) / "start.safetensors"
        digest = ladder.shared.write_start(plan, start) if is_shared else plan.training.start
        plan = plan.model_copy(update={"training": TrainingSpec(steps=steps, start=digest)})
        unfinished = draft(bench, build_network(bench, plan), plan, path, StageClock())
        if is_shared:
            unfinished.network.load_state_dict(load_file(start))
        finish(bench, unfinished, plan, path, Path(folder) / "weights.safetensors", StageClock())
        own = answers(bench, path, bench.data.validation, plan)
    return compare(bench.data, bench.data.validation, own, ladder.session.baseline_answers).drop_points


def agreement(pairs: list[dict[str, Any]], largest_drop_points: float = LARGEST_DROP_POINTS) -> dict[str, Any]:
    """Kendall's tau of cheap scores and trained drops, with its interval, over files that lose less than so much."""
    kept = [pair for pair in pairs if pair["trained_drop_points"] < largest_drop_points]
    trained = np.array([pair["trained_drop_points"] for pair in kept])
    figures: dict[str, Any] = {"plans": len(pairs), "kept": len(kept)}
    for name in ("corrected_drop_points", "shared_drop_points", "divergence"):
        scores = np.array([pair[name] for pair in kept])
        figures[name] = _tau(scores, trained)
        for part in ("family", "limits"):
            for value in sorted({pair[part] for pair in kept}):
                own = np.array([pair[part] == value for pair in kept])
                if 2 < own.sum() < len(kept):
                    figures[f"{name}, {value} ({int(own.sum())})"] = _tau(scores[own], trained[own])
    return figures


def _tau(scores: NDArray[np.float64], trained: NDArray[np.float64]) -> dict[str, float]:
    rng = np.random.default_rng(0)
    rows = rng.integers(len(scores), size=(RESAMPLES, len(scores)))
    samples = [kendalltau(scores[own], trained[own]).statistic for own in rows]
    low, high = np.nanquantile(samples, [0.025, 0.975])
    return {"tau": float(kendalltau(scores, trained).statistic), "low": float(low), "high": float(high)}


def main() -> None:
    """Score, train, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="folder of a ladder's run")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--plans", type=int, default=30, help="plans with a drop below --below points")
    parser.add_argument(
        "--below", type=float, default=LARGEST_DROP_POINTS, help="points; files that lose more do not count"
    )
    parser.add_argument("--limits", choices=["study", "between", "reference"], default="study", help="of what is drawn")
    parser.add_argument("--family", choices=["base", "space"], help="of all plans; by default any")
    parser.add_argument("--steps", type=int, help="of each training; by default the study's of a trial")
    parser.add_argument("--seed", type=int, default=1234)
    arguments = parser.parse_args()
    ladder = open_ladder(open_run(arguments.run), arguments.limits)
    kept = arguments.out.with_suffix(".jsonl")
    pairs = [json.loads(line) for line in kept.read_text().splitlines()] if kept.is_file() else []
    drawn = sum(pair["limits"] == arguments.limits for pair in pairs)
    for number, plan in enumerate(draw_plans(ladder, arguments.seed, arguments.family)):
        if sum(pair["trained_drop_points"] < arguments.below for pair in pairs) >= arguments.plans:
            break
        if number < drawn:
            continue
        begun = time.perf_counter()
        steps = arguments.steps or plan.training.steps
        _, estimate, _ = beyond(ladder, plan)
        divergence, drop = ladder.shared.score(plan)
        try:
            trained = trained_drop(ladder, plan, steps)
        except TrialFailed as error:
            print(f"plan {number} failed: {error}")
            trained = 100.0
        pair = {
            "limits": arguments.limits,
            "family": plan.architecture.family,
            "steps": steps,
            "latency_ratio": estimate.latency_ratio,
            "size_ratio": estimate.size_ratio,
            "macs_ratio": ladder.macs_ratio(plan),
            "divergence": divergence,
            "shared_drop_points": drop,
            "corrected_drop_points": corrected_drop(ladder, plan, divergence, steps, number),
            "trained_drop_points": trained,
            "seconds": time.perf_counter() - begun,
        }
        pairs.append(pair)
        with kept.open("a") as file:
            file.write(json.dumps(pair) + "\n")
        print(number, pair, flush=True)
    figures = {
        "shared": ladder.shared.record(),
        **agreement(pairs, arguments.below),
        "pairs": pairs,
    }
    write_json(arguments.out, figures)
    print(json.dumps({key: value for key, value in figures.items() if key != "pairs"}, indent=1))


if __name__ == "__main__":
    main()
