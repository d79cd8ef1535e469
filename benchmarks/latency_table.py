"""How well the table of operators predicts the latency of random plans of ResNet-56 on CIFAR-10.

    python -m benchmarks.latency_table --data DIR --run RUN --out FILE

RUN is a run folder of the study with its baseline. Each plan is drafted untrained, which has the final latency, and
timed against the baseline in several sittings, one round over all plans after the other. Plans beyond the first
ones serve as the test; the correction sees only other plans. Every sitting is kept beside FILE as it is measured,
and a second call goes on from there.

What is predicted is the ratio to the baseline of the same sitting. Neighbours on the machine change it: they slow a
baseline of megabytes down, which loses the cache to them, and a candidate of kilobytes hardly. So the errors are
given for the candidate's own milliseconds too, and beside both how far one sitting is from the others of the
same file: no prediction can be closer to a sitting than that.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from scipy.stats import spearmanr

from autocompress.candidate import Latency
from autocompress.config import StudyConfig, load_study
from autocompress.deploy.latency_table import Features, LatencyTable, fit_correction
from autocompress.engine.baseline import Inputs, load_inputs, make_bench, measure_latency, restore_base
from autocompress.engine.run_folder import RunFolder, open_run, read_analysis, read_baseline, read_facts
from autocompress.engine.session import make_space
from autocompress.engine.sittings import usual_baseline_ms
from autocompress.engine.space import PerLayer, Space
from autocompress.operators import Operator, from_json, operators
from autocompress.pipeline import Bench, build_network, deployable_of, draft, trace_network
from autocompress.plan import Plan
from autocompress.stage_clock import StageClock

STUDY = Path(__file__).parents[1] / "studies" / "cifar10_resnet56.toml"
FITTED, TESTED = 8, 50
SITTINGS = 3
STEADY = 0.05
"""How far the two estimates of a sitting's ratio may be apart: of the blocks' ratios, and of the medians' ratio."""


@dataclass(frozen=True)
class Pair:
    """A plan's operators and the sittings of its file."""

    family: str
    operators: list[Operator]
    sittings: list[Latency]


@dataclass(frozen=True)
class Workplace:
    """What drafting and timing plans takes."""

    config: StudyConfig
    inputs: Inputs
    run: RunFolder
    bench: Bench
    space: Space
    folder: Path

    def plan(self, number: int) -> Plan:
        """A random plan; the same number gives the same one."""
        sampler = optuna.samplers.RandomSampler(seed=number)
        return self.space.suggest_plan(PerLayer(optuna.create_study(sampler=sampler).ask()), number)

    def operators(self, plan: Plan) -> list[Operator]:
        """What the plan's file computes."""
        network = build_network(self.bench, plan)
        precisions, target = plan.quantization.precisions, self.config.target
        deployable = deployable_of(network, trace_network(self.bench, network), precisions)
        return operators(deployable, precisions, target.batch_size, target.sequence_length)

    def write_plan(self, number: int) -> None:
        """Draft the plan's file, and write its operators beside it."""
        plan, path = self.plan(number), self.folder / f"{number}.onnx"
        draft(self.bench, build_network(self.bench, plan), plan, path, StageClock())
        found = [operator.as_json() for operator in self.operators(plan)]
        content = {"family": plan.architecture.family, "operators": found}
        path.with_suffix(".json").write_text(json.dumps(content), encoding="utf-8")

    def time(self, number: int) -> Latency:
        """One sitting of the plan's file against the baseline."""
        candidate, baseline = self.folder / f"{number}.onnx", self.run.baseline / "model.onnx"
        usual_ms = usual_baseline_ms(read_baseline(self.run), ())
        return measure_latency(candidate, baseline, self.inputs.data, self.config.target, usual_ms)


def open_workplace(data: str, run: RunFolder, folder: Path) -> Workplace:
    """Load the study and the base of a run."""
    config = load_study(STUDY, data_folder=data)
    inputs = load_inputs(config)
    torch.set_num_threads(1)
    digest = restore_base(run, inputs)
    bench = make_bench(run, inputs, read_facts(run))
    return Workplace(
        config, inputs, run, bench, make_space(config, inputs, read_analysis(run), digest, read_facts(run)), folder
    )


def measure(workplace: Workplace, log: Path, sittings: int) -> None:
    """Time every plan once in each sitting; what the log has already is left out."""
    done = {(entry["number"], entry["sitting"]) for entry in _entries(log)}
    for sitting in range(sittings):
        for number in range(FITTED + TESTED):
            if (number, sitting) in done:
                continue
            if not (workplace.folder / f"{number}.json").is_file():
                workplace.write_plan(number)
            latency = workplace.time(number)
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"number": number, "sitting": sitting, **latency.model_dump()}) + "\n")
            print(f"sitting {sitting}, plan {number}: ratio {latency.ratio:.4f}", flush=True)


def _entries(log: Path) -> list[dict[str, Any]]:
    if not log.is_file():
        return []
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def read_pairs(folder: Path, log: Path) -> list[Pair]:
    """All plans in order of their numbers; unsteady sittings count only where there is no other."""
    found: dict[int, list[Latency]] = {}
    for entry in _entries(log):
        latency = Latency(**{name: entry[name] for name in Latency.model_fields})
        found.setdefault(entry["number"], []).append(latency)
    pairs = []
    for number, sittings in sorted(found.items()):
        content = json.loads((folder / f"{number}.json").read_text(encoding="utf-8"))
        steady = [sitting for sitting in sittings if is_steady(sitting)]
        pairs.append(Pair(content["family"], [from_json(o) for o in content["operators"]], steady or sittings))
    return pairs


def is_steady(latency: Latency) -> bool:
    """Whether a sitting's baseline did not drift, and both estimates of its ratio agree."""
    return not latency.noisy and abs(latency.ratio * latency.baseline_ms / latency.latency_ms - 1) <= STEADY


def errors(predicted: Sequence[float], measured: Sequence[float]) -> dict[str, float]:
    """Median and 90th percentile of the absolute relative error, and Spearman's rank correlation."""
    relative = np.abs(np.array(predicted) / np.array(measured) - 1)
    return {
        "median_error": float(np.median(relative)),
        "p90_error": float(np.quantile(relative, 0.9)),
        "rank_correlation": float(spearmanr(predicted, measured).statistic),
    }


def evaluate(
    table: LatencyTable, baseline: Sequence[Operator], pairs: Sequence[Pair], figure: Callable[[Latency], float]
) -> dict[str, dict[str, float]]:
    """Errors on the tested plans by how the correction was fitted; never on the plan itself.

    Args:
        figure: what is predicted of a sitting, up to a factor that all plans share.
    """
    base = table.features(baseline)
    every = [[figure(sitting) for sitting in pair.sittings] for pair in pairs]
    known = [(table.features(p.operators), float(np.median(e))) for p, e in zip(pairs, every, strict=True)]
    tested = range(min(FITTED, len(known)), len(known))

    def predict(fitted_on: Sequence[tuple[Features, float]], number: int) -> float:
        return fit_correction(base, fitted_on).ratio(known[number][0])

    measured = [known[number][1] for number in tested]
    found = {
        "no correction": errors([predict([], number) for number in tested], measured),
        f"fitted on {FITTED} other plans": errors([predict(known[:FITTED], n) for n in tested], measured),
        "fitted on all other plans": errors([predict(known[:n] + known[n + 1 :], n) for n in tested], measured),
    }
    several = [every[number] for number in tested if len(every[number]) > 1]
    if several:
        others = [float(np.median(figures[1:])) for figures in several]
        found["one sitting against the others"] = errors([figures[0] for figures in several], others)
    return found


def filled(folder: Path, threads: int, found: Sequence[Operator]) -> tuple[LatencyTable, int, float]:
    """A table that was empty, with how many operators it was filled with and the seconds that took."""
    LatencyTable(threads, folder).path.unlink(missing_ok=True)
    table, start = LatencyTable(threads, folder), time.perf_counter()
    return table, table.fill(found), time.perf_counter() - start


def lines(figures: dict[str, dict[str, float]]) -> list[str]:
    """A table of the errors."""
    shown = [f"{'':<32}{'median error':>14}{'90 % below':>12}{'rank corr.':>12}"]
    for name, row in figures.items():
        shown.append(f"{name:<32}{row['median_error']:>14.1%}{row['p90_error']:>12.1%}{row['rank_correlation']:>12.3f}")
    return shown


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of the study's data")
    parser.add_argument("--run", type=Path, required=True, help="run folder of the study, with its baseline")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; sittings and files are kept beside it")
    parser.add_argument("--sittings", type=int, default=SITTINGS, help="how often each file is timed")
    arguments = parser.parse_args()
    out: Path = arguments.out
    folder, log = out.with_suffix(".files"), out.with_suffix(".sittings.jsonl")
    folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    workplace = open_workplace(arguments.data, open_run(arguments.run), folder)
    measure(workplace, log, arguments.sittings)
    pairs, baseline = read_pairs(folder, log), workplace.operators(Plan())
    found = [operator for pair in pairs for operator in pair.operators] + baseline
    table, measured, seconds = filled(folder, workplace.config.target.threads, found)
    sittings = [sitting for pair in pairs for sitting in pair.sittings]
    usual_ms = float(np.median([sitting.baseline_ms for sitting in sittings]))
    figures = {
        "ratio": evaluate(table, baseline, pairs, lambda sitting: sitting.ratio),
        "milliseconds": evaluate(table, baseline, pairs, lambda sitting: sitting.latency_ms / usual_ms),
    }
    facts = {
        "plans": len(pairs),
        "tested": len(pairs) - FITTED,
        "unsteady_plans": sum(not any(map(is_steady, pair.sittings)) for pair in pairs),
        "baseline_ms_quantiles": np.quantile([sitting.baseline_ms for sitting in sittings], [0.1, 0.5, 0.9]).tolist(),
        "baseline_ms_predicted": table.features(baseline).total_ms,
        "operators": measured,
        "fill_s": round(seconds, 2),
    }
    out.write_text(json.dumps(facts | {"errors": figures}, indent=1), encoding="utf-8")
    for name, rows in figures.items():
        print("\n".join([f"Errors of the {name}", *lines(rows), ""]))
    print(f"{measured} operators measured in {seconds:.1f} s")


if __name__ == "__main__":
    main()
