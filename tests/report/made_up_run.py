"""A made-up run with the features of a real one: two families, limits, failures, continued training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna

from autocompress.candidate import Accuracy, Candidate, Latency, Measurement, Origin, Parity, State
from autocompress.config import StudyConfig
from autocompress.engine.pareto import front
from autocompress.plan import (
    ArchitectureSpec,
    DistillationSpec,
    Plan,
    Precision,
    PruningSpec,
    QuantizationSpec,
    TrainingSpec,
)

BASELINE_MS = 1.58
BASELINE_BYTES = 3_612_000
VALIDATION, TEST = 5_000, 10_000
BLOCKS = tuple(f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(9))
HOSTILE = "<script>alert(1)</script>"


@dataclass(frozen=True)
class Run:
    """Arguments of ``write_report``."""

    config: StudyConfig
    baseline: Measurement
    candidates: list[Candidate]
    facts: dict[str, Any]
    study: optuna.Study | None = field(default=None)


def accuracy(total: int, drop_points: float, churn: float = 0.02) -> Accuracy:
    """Hits of a file that drops ``drop_points`` from 88.3 % and answers ``churn`` of the examples anew."""
    net = round(total * drop_points / 100)
    gained = round(total * churn) + max(0, -net)
    return Accuracy(correct=round(0.883 * total) - net, total=total, lost=gained + net, gained=gained)


def measurement(size_ratio: float, latency_ratio: float, drop: float | None, noisy: bool = False) -> Measurement:
    """A file's figures; without a drop it was stopped before training."""
    latency_ms = BASELINE_MS * latency_ratio
    latency = Latency(
        latency_ms=latency_ms, p90_ms=1.07 * latency_ms, baseline_ms=(1.3 if noisy else 1.0) * BASELINE_MS, ratio=latency_ratio,
        ratio_low=0.985 * latency_ratio, ratio_high=1.02 * latency_ratio, noisy=noisy,
    )  # fmt: skip
    size_bytes = round(BASELINE_BYTES * size_ratio)
    return Measurement(
        size_bytes=size_bytes, compressed_bytes=round(0.93 * size_bytes), size_ratio=size_ratio,
        latency=latency, parity=Parity(top1_agreement=0.998, examples=512),
        validation=None if drop is None else accuracy(VALIDATION, drop),
    )  # fmt: skip


def base_plan(generator: np.random.Generator, dropped: int, ratio: float, precisions: list[Precision]) -> Plan:
    """The base without ``dropped`` blocks, pruned around ``ratio``."""
    gone = tuple(sorted(generator.choice(BLOCKS, size=dropped, replace=False).tolist()))
    kept = [block for block in BLOCKS if block not in gone]
    layers = ["conv1", *(f"{block}.{conv}" for block in kept for conv in ("conv1", "conv2")), "linear"]
    ratios = {f"{block}.conv1": float(generator.choice([0, ratio, min(ratio + 0.25, 0.75)])) for block in kept}
    return Plan(
        architecture=ArchitectureSpec(dropped_blocks=gone),
        pruning=PruningSpec(ratios=ratios if ratio else dict.fromkeys(ratios, 0.0)),
        distillation=DistillationSpec(alpha=float(generator.uniform(0.3, 1)), hint_weight=0.2),
        quantization=QuantizationSpec(precisions={n: Precision(generator.choice(precisions)) for n in layers}),
        training=TrainingSpec(steps=300, start="0" * 64),
    )


def space_plan(generator: np.random.Generator, depths: list[int], precisions: list[Precision]) -> Plan:
    """A student with ``depths`` blocks in its stages of 32, 64 and 128 channels."""
    blocks = [f"stages.{stage}.{block}" for stage, depth in enumerate(depths) for block in range(depth)]
    layers = ["stem", *(f"{block}.{conv}" for block in blocks for conv in ("conv1", "conv2")), "head"]
    choices = {f"depth{stage + 1}": depth for stage, depth in enumerate(depths)} | {"kernel": 3}
    return Plan(
        architecture=ArchitectureSpec(family="space", choices=choices),
        distillation=DistillationSpec(alpha=float(generator.uniform(0.3, 1)), temperature=3.0),
        quantization=QuantizationSpec(precisions={n: Precision(generator.choice(precisions)) for n in layers}),
        training=TrainingSpec(steps=600),
    )


def enqueued() -> list[Candidate]:
    """The obvious plans, measured first."""
    rows = [
        ("uncompressed", Precision.FLOAT32, 0.0, 1.0, 1.0, 0.0),
        ("int8", Precision.W8A8, 0.0, 0.308, 0.452, 0.06),
        ("uniform w4a8", Precision.W4A8, 0.0, 0.171, 0.455, 0.94),
        ("uniform w8a8, half the channels", Precision.W8A8, 0.5, 0.188, 0.401, 1.62),
    ]
    generator = np.random.default_rng(0)
    return [
        Candidate(
            trial=trial, origin=Origin.ENQUEUED, state=State.COMPLETE, name=name,
            total_steps=300 if trial else 0, started_s=40.0 * trial + 20,
            finished_s=40.0 * trial + 55, stage_seconds=stages(28.0),
            plan=base_plan(generator, 0, ratio, [precision]),
            measurement=measurement(size_ratio, latency_ratio, drop),
        )
        for trial, (name, precision, ratio, size_ratio, latency_ratio, drop) in enumerate(rows)
    ]  # fmt: skip


def stages(train_s: float) -> dict[str, float]:
    """Seconds by stage of one trial."""
    return {"build": 0.3, "export": 0.9, "train": train_s, "calibrate": 1.1, "evaluate": 2.2, "time": 1.4}


def sampled(generator: np.random.Generator, trial: int) -> Candidate:
    """A trial of either family whose figures follow from its plan roughly as they would."""
    mixed = [
        [Precision.W8A8],
        [Precision.W4A8, Precision.W8A8],
        [Precision.W3A8, Precision.W4A8, Precision.W4],
    ]
    bits = int(generator.integers(3))
    if generator.random() < 0.5:
        dropped, ratio = int(generator.integers(4, 20)), float(generator.choice([0.0, 0.25, 0.5]))
        plan = base_plan(generator, dropped, ratio, mixed[bits])
        latency, size = (
            0.05 + 0.4 * (27 - dropped) / 27,
            (0.31 - 0.09 * bits) * (1 - dropped / 32) * (1 - ratio / 2),
        )
        drop = 0.05 * dropped + 1.1 * ratio + 0.35 * bits**1.5 + generator.normal(0.35, 0.35)
    else:
        depths = generator.integers(0, 3, size=3).tolist()
        plan = space_plan(generator, depths, mixed[bits])
        latency = 0.07 + 0.035 * sum(depths)
        size = (0.28 - 0.08 * bits) * (0.1 + 0.05 * depths[0] + 0.15 * depths[1] + 0.35 * depths[2])
        drop = 4.6 - 0.75 * sum(depths) + 0.3 * bits + generator.normal(0.3, 0.6)
    return record(generator, trial, plan, size, latency * generator.uniform(0.95, 1.05), float(drop))


def record(
    generator: np.random.Generator, trial: int, plan: Plan, size: float, latency: float, drop: float
) -> Candidate:
    """The trial's record; some are stopped at a limit, some fail."""
    start = 180.0 + 40.0 * (trial - 4)
    times: dict[str, Any] = {"started_s": start, "finished_s": start + 36, "stage_seconds": stages(29.0)}
    if trial in (9, 21, 33):
        kind = "parity: top-1 agreement 97.1 % is below 99 %" if trial != 21 else f"export: no operator {HOSTILE}"
        return Candidate(trial=trial, origin=Origin.SAMPLED, state=State.FAILED, reason=kind, plan=plan, **times)
    over = trial % 9 == 5
    reason = "max_latency_ms = 0.8 (1.09 times over)" if over else ""
    return Candidate(
        trial=trial, origin=Origin.SAMPLED, state=State.OVER_LIMIT if over else State.COMPLETE,
        reason=reason, total_steps=0 if over else plan.training.steps, plan=plan, **times,
        violations={"max_latency_ms": 0.09} if over else {"max_accuracy_drop": drop - 3.0},
        measurement=measurement(size, 0.55 if over else latency, None if over else drop, noisy=trial == 15),
    )  # fmt: skip


def continued(parent: Candidate, trial: int, start: float) -> Candidate:
    """Training of ``parent`` gone on with: the same bytes and latency, a smaller drop."""
    measured = parent.measurement
    assert measured is not None and measured.latency is not None and measured.validation is not None
    drop = 0.55 * measured.validation.drop_points - 0.05
    again = measurement(measured.size_ratio, measured.latency.ratio * (0.995 + 0.002 * (trial % 4)), drop)
    return parent.model_copy(
        update={
            "trial": trial, "origin": Origin.CONTINUED, "parent": parent.trial, "measurement": again,
            "total_steps": parent.total_steps + 900, "started_s": start, "finished_s": start + 95,
            "violations": {"max_accuracy_drop": drop - 3.0}, "stage_seconds": stages(88.0),
        }
    )  # fmt: skip


def with_test(candidate: Candidate) -> Candidate:
    """The candidate with its test figures read."""
    assert candidate.measurement is not None and candidate.measurement.validation is not None
    test = accuracy(TEST, candidate.measurement.validation.drop_points + 0.13)
    return candidate.model_copy(update={"measurement": candidate.measurement.model_copy(update={"test": test})})


def optuna_study(candidates: list[Candidate]) -> optuna.Study:
    """The storage's view of the candidates: each family has parameters of its own."""
    study = optuna.create_study(directions=["minimize"] * 3)
    binary = optuna.distributions.CategoricalDistribution([0, 1])
    share = optuna.distributions.FloatDistribution(0.0, 1.0)
    for candidate in candidates:
        plan = candidate.plan
        params: dict[str, Any] = {"distillation/alpha": plan.distillation.alpha}
        distributions: dict[str, Any] = {"distillation/alpha": share}
        if plan.architecture.family == "base":
            for block in BLOCKS[::3]:
                params[f"base/drop/{block}"] = int(block in plan.architecture.dropped_blocks)
                distributions[f"base/drop/{block}"] = binary
        for label, depth in plan.architecture.choices.items():
            params[f"space/{label}"] = depth
            distributions[f"space/{label}"] = optuna.distributions.IntDistribution(0, 3)
        complete = candidate.state is State.COMPLETE
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.COMPLETE if complete else optuna.trial.TrialState.FAIL,
                params=params, distributions=distributions, values=[0.0, 0.0, 0.0] if complete else None,
            )
        )  # fmt: skip
    return study


FACTS: dict[str, Any] = {
    "machine": "x86_64",
    "cpu": "Intel Xeon",
    "cpu_features": ["avx2", "avx512_vnni"],
    "cores": 2,
    "python": "3.11.9",
    "versions": {"torch": "2.13.0", "onnxruntime": "1.27.0", "optuna": "5.0.0", "autocompress": "0.1.0"},
    "baseline_s": 12.5,
    "analysis": {
        "parameters": 855_770,
        "runs": [{"name": "layer1", "blocks": ["layer1.4", "layer1.2"], "sensitivities": [0.01, 0.02]}],
        "groups": [{"name": "layer1.0.conv1", "channels": 16, "layers": ["layer1.0.conv1"]}],
        "layers": [
            {"name": n, "kind": k, "parameters": 9}
            for n, k in (("conv1", "convolution"), ("layer1.0.conv1", "convolution"), ("linear", "linear"))
        ],
        "left_out": {
            "block layer2.0": "input and output shapes differ",
            "group conv1": "the dry run broke it",
        },
    },
}


def make_run(seed: int = 0) -> Run:
    """About 60 candidates; the same seed gives the same run."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    generator = np.random.default_rng(seed)
    candidates = enqueued() + [sampled(generator, trial) for trial in range(4, 52)]
    parents = sorted(front([c for c in candidates if c.origin is Origin.SAMPLED]), key=lambda c: c.trial)
    children = [continued(parent, 52 + n, 2110.0 + 100 * n) for n, parent in enumerate(parents[:8])]
    candidates += children
    members = {member.trial for member in front(candidates)}
    candidates = [with_test(c) if c.trial in members else c for c in candidates]
    config = StudyConfig.model_validate(
        {
            "study": {"name": "cifar10_resnet56", "timeout": "60m"},
            "model": {"source": "package.module:factory"},
            "data": {"source": "imagefolder:cifar10"},
            "limits": {"max_accuracy_drop": 3.0, "max_latency_ms": 0.8},
        }
    )
    baseline = measurement(1.0, 1.0, 0.0).model_copy(update={"test": accuracy(TEST, 0.0, churn=0.0)})
    return Run(config, baseline, candidates, FACTS, optuna_study(candidates))
