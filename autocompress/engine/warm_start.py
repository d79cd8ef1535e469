"""What a ladder begins with: the solver's own front, and what earlier runs of the same base have found."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import load_file

from autocompress.config import StudyConfig
from autocompress.engine.guided import Guide, Targets
from autocompress.engine.run_folder import RunFolder, run_config, write_json
from autocompress.engine.space import NamedPlan
from autocompress.engine.space_front import space_front
from autocompress.models import state_digest
from autocompress.plan import DistillationSpec, Plan, PruningSpec
from autocompress.whole_file import written_whole

SPEEDUPS, FACTORS = (1.15, 1.5, 2.1), (1.25, 1.7, 2.4)
"""Targets of the solver's plans, in units of the limits."""
WIDE = (1.2, 2.5, 5.0)
"""The same where no limit says how far to go: some base loses nothing at the first, another all it knows at the last."""
LOOK_S, LOOK_SHARE = 60.0, 0.02
"""Time to look for members of the model space, at most: seconds, and share of the study's."""
TRAIN_DIGEST = "train.sha256"
SECTIONS = ("model", "data", "task", "training", "space", "target")
"""What two studies must share for the one to begin with what the other has found; seeds and limits may differ."""


def solver_plans(guide: Guide, family: str, timeout_s: float | None) -> Iterator[NamedPlan]:
    """For a few targets the shrunken base, or the member of the model space, that the tables think best.

    Args:
        timeout_s: of the study; the look into the model space takes a small part of it.
    """
    speedup, smaller = guide.easiest()
    low, high = guide.bits_range()
    section = guide.space.section
    distillation = DistillationSpec(
        alpha=min(max(0.9, section.alpha[0]), section.alpha[1]),
        temperature=min(max(4.0, section.temperature[0]), section.temperature[1]),
        hint_weight=section.hint_weight[0],
        hidden_weight=section.hidden_weight[0],
        relation_weight=section.relation_weight[0],
    )
    speedups = [speedup * faster for faster in (SPEEDUPS if guide.limits_latency else WIDE)]
    factors = [smaller * factor for factor in (FACTORS if guide.limits_size else WIDE)]
    look_s = min(LOOK_S, LOOK_SHARE * (timeout_s or math.inf))
    members = space_front(guide, speedups, guide.space.seed, look_s) if family == "space" else []
    seen: list[Plan] = []
    for place, faster in enumerate(speedups[: len(members)] if family == "space" else speedups):
        for factor in factors:
            targets = Targets(faster, factor, (low * high) ** 0.5)
            if family == "base":
                plan = guide.base_plan(targets, distillation, 0)
            else:
                plan = guide.space_plan(members[place], PruningSpec(), targets, distillation, 0)
            if plan not in seen:  # a small network has few
                seen.append(plan)
                name = f"solver, {family}, {faster:.1f}x faster and {factor:.1f}x smaller"
                yield NamedPlan(name, plan, None)


def earlier_run(run: RunFolder, config: StudyConfig, digest: str) -> RunFolder | None:
    """A run beside this one of the same base, data and space that has shared weights and tables; of those with the most
    steps the latest.

    Args:
        digest: of the train split; weights that were trained on other examples may have seen this run's test.
    """
    own = state_digest(load_file(run.baseline / "weights.safetensors"))
    found: list[tuple[float, float, RunFolder]] = []
    for progress in run.root.parent.glob("*/shared/progress.json"):
        other = RunFolder(progress.parent.parent)
        if other.root.resolve() == run.root.resolve() or other.root.name.startswith("."):
            continue
        try:
            seen = (progress.parent / TRAIN_DIGEST).read_text(encoding="utf-8")
            theirs = run_config(other)
            same = seen == digest and all(getattr(theirs, name) == getattr(config, name) for name in SECTIONS)
            if same and state_digest(load_file(other.baseline / "weights.safetensors")) == own:
                steps = sum(entry["steps"] for entry in json.loads(progress.read_text(encoding="utf-8")).values())
                found.append((steps, (progress.parent / "tables.json").stat().st_mtime, other))
        except Exception:  # a run that is damaged or of another version lends nothing
            continue
    return max(found, key=lambda entry: entry[:2])[2] if found else None


def take_over_(run: RunFolder, other: RunFolder) -> None:
    """Copy tables and shared weights of an earlier run; the time they took is not this run's.

    The tables come last: where they are, nothing is taken any more.
    """
    target, source = run.root / "shared", other.root / "shared"
    for path in source.glob("*.safetensors"):
        _copy(path, target / path.name)
    record = json.loads((source / "progress.json").read_text(encoding="utf-8"))
    write_json(target / "progress.json", {name: entry | {"seconds": 0.0} for name, entry in record.items()})
    _copy(source / "tables.json", target / "tables.json")


def take_answers_(folder: Path, other: RunFolder) -> None:
    """Copy what the teacher of an earlier run has said, if it was asked the same.

    Args:
        folder: of this run's answers.
    """
    for path in (other.baseline / folder.name).glob("*.npy"):
        folder.mkdir(exist_ok=True)
        _copy(path, folder / path.name)


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as read, written_whole(target) as write:
        shutil.copyfileobj(read, write)
