"""The ladder of one session: what it knows of its base, its plans and what they cost.

Made once by each process; tables and shared weights lie in the run folder, so that others and later ones find them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from autocompress.analysis import Analysis
from autocompress.candidate import Candidate, Origin, State
from autocompress.deploy.latency_table import LatencyTable
from autocompress.engine.expectation import Curves, Expectation, fit_curves, fit_expectation, least_drop_points
from autocompress.engine.guided import Guide, Targets
from autocompress.engine.kept_answers import answers_folder
from autocompress.engine.prediction import Predictor, make_predictor
from autocompress.engine.run_folder import RunFolder, write_json
from autocompress.engine.session import Session, enqueue
from autocompress.engine.shared import TOLERANCE, Shared
from autocompress.engine.space import plain_int8
from autocompress.engine.step_time import StepTime, fit_step_time
from autocompress.engine.tables import Tables, measure_tables
from autocompress.engine.taken_files import take_files_
from autocompress.engine.time_left import USUAL_OVERHEAD_S
from autocompress.engine.warm_start import (
    TRAIN_DIGEST,
    earlier_run,
    solver_plans,
    take_answers_,
    take_over_,
)
from autocompress.errors import TrialFailed, UserError, first_line
from autocompress.file_lock import exclusive
from autocompress.pipeline import measured_step_s
from autocompress.plan import DistillationSpec, Plan

USUAL_STEP = StepTime(0.02, 1.5e-9)
"""Until a step was seen."""
JOINED = "families"
"""The study's attribute that names families that take part."""
BEGUN = "begun"
"""That which names those whose first plans are enqueued."""


@dataclass
class Ladder:
    """A session with what the ladder knows."""

    session: Session
    guide: Guide
    predictor: Predictor
    shared: Shared
    overhead_s: float = USUAL_OVERHEAD_S
    _known: dict[int, tuple[float, float]] = field(default_factory=dict)
    _probed: dict[str, tuple[float, float] | None] = field(default_factory=dict)

    def curves(self, candidates: Sequence[Candidate]) -> Curves:
        """What is left of drops after more training, by all that was trained so far."""
        steps = {family: self.step_time(candidates, family) for family in ("base", "space")}
        return fit_curves(
            candidates,
            {family: self.session.space.steps(family) for family in steps},
            lambda c: self._figures(c)[1],
            lambda c: steps[c.plan.architecture.family].seconds(self._figures(c)[0]),
        )

    def expectation(self, candidates: Sequence[Candidate]) -> Expectation:
        """What a cheap score says of a trained file, by all that was trained so far."""
        whole = self.predictor.macs(Plan())
        return fit_expectation(candidates, self.curves(candidates), lambda c: self._figures(c)[0] / whole)

    def macs_ratio(self, plan: Plan) -> float:
        """Multiplications of a plan, over the base's."""
        return self.predictor.macs(plan) / self.predictor.macs(Plan())

    def step_s(self, candidates: Sequence[Candidate], plan: Plan) -> float:
        """Seconds of a step of a plan's training. The first one of its family is measured where no file was trained here:
        a step of the shared weights has parts of its own.
        """
        family, macs = plan.architecture.family, self.predictor.macs(plan)
        if family not in self._probed and not self._trained_here(candidates, family):
            self._probed[family] = None
            # whatever goes wrong will go wrong in the training as well, which is recorded
            with suppress(Exception):
                self._probed[family] = macs, measured_step_s(self.session.bench, plan)
        return self.step_time(candidates, family).seconds(macs)

    def step_time(self, candidates: Sequence[Candidate], family: str) -> StepTime:
        """Of the family's files, else of what was measured, else of shared weights."""
        record = self.shared.record()
        shared = [record[name] for name in (family, *record) if name in record and record[name]["macs"]]
        own = self._trained_here(candidates, family)
        seen = [(self.predictor.macs(c.plan), c.stage_seconds["train"] / c.plan.training.steps) for c in own]
        probed = self._probed.get(family)
        seen = seen or ([probed] if probed else [])
        seen = seen or [(entry["macs"], entry["seconds_per_step"]) for entry in shared[:1]]
        return fit_step_time(seen) if seen else USUAL_STEP

    @staticmethod
    def _trained_here(candidates: Sequence[Candidate], family: str) -> list[Candidate]:
        """Files of a family whose trainings say how long a step takes."""
        files = [c for c in candidates if c.state is State.COMPLETE and c.plan.training.steps > 0]
        files = [c for c in files if c.origin is not Origin.TAKEN]  # which were trained elsewhere
        return [c for c in files if c.plan.architecture.family == family]

    def _figures(self, candidate: Candidate) -> tuple[float, float]:
        """Multiplications of a candidate, and the drop in points that it comes near in the end."""
        if candidate.trial not in self._known:
            plan = candidate.plan
            self._known[candidate.trial] = self.predictor.macs(plan), self.least_drop_points(plan)
        return self._known[candidate.trial]

    def least_drop_points(self, plan: Plan) -> float:
        """Drop that a plan is thought to come near in the end."""
        ratio = self.predictor.capacity(plan) / self.predictor.capacity(Plan())
        return least_drop_points(plan.architecture.family, ratio, self.predictor.shares_of_bits(plan))

    @property
    def families(self) -> tuple[str, ...]:
        """Families that take part so far, in the order in which they join: those with shared weights, and the first."""
        known = {*self.shared.record(), *self.session.study.user_attrs.get(JOINED, [])}
        return tuple(f for f in self.guide.families if f in known) or self.guide.families[:1]

    def next_family(self) -> str | None:
        """The family that joins next; None when all take part."""
        return next((f for f in self.guide.families if f not in self.families), None)

    def join_(self, family: str) -> None:
        """Let a family take part from now on, in all processes; asked under the lock."""
        self.session.study.set_user_attr(JOINED, [*self.families, family])


def make_ladder(session: Session, analysis: Analysis) -> Ladder | str:
    """Measure or read the tables of a run; or the reason why its model cannot be made elastic.

    Raises:
        UserError: the tables of this machine cannot be kept.
        OSError: those of the run cannot.
    """
    space, bench = session.space, session.bench
    if not analysis.groups and not analysis.runs and space.model_space is None:
        return "the model has no prunable group and no removable block"
    if session.config.training.steps == 0:
        return "training.steps = 0 trains nothing"
    shared = Shared(bench, session.run, session.config.study.seed)
    shared.folder.mkdir(exist_ok=True)
    path = shared.folder / "tables.json"
    try:
        if not path.is_file():  # the lock may be held for the minutes of a cycle
            with exclusive(shared.folder / "lock"):
                _make_tables_(session, analysis, path)
        tables = Tables.model_validate_json(path.read_text(encoding="utf-8"))
        table = LatencyTable(session.config.target.threads)
        usual = plain_int8(space.section, space.saturates)
        size = session.baseline.size_bytes
        predictor = make_predictor(bench, session.config.target, tables, usual, table, size)
        guide = Guide(
            space=space,
            analysis=analysis,
            tables=tables,
            predictor=predictor,
            limits=session.config.limits,
            baseline=session.baseline,
            bit_errors=lambda plan: shared.bit_errors(plan, tables.bits),
            families=tuple(space.families()),
        )
        ladder = Ladder(session, guide, predictor, shared)
        return _disagreement(ladder) or ladder
    except TrialFailed as error:
        return f"{error.kind}: {error}"
    except (UserError, OSError):
        raise  # of the machine and not of the model
    except Exception as error:  # whatever a model does that sharing cannot follow
        return f"sharing weights failed with {type(error).__name__}: {first_line(error)}"


def _make_tables_(session: Session, analysis: Analysis, path: Path) -> None:
    """Measure the tables of a run, or take those of an earlier one with what else it has; nothing where they are."""
    if path.is_file():  # another process has made them meanwhile
        return
    bench, section, digest = session.bench, session.space.section, session.bench.data.train_digest
    (path.parent / TRAIN_DIGEST).write_text(digest, encoding="utf-8")
    earlier = earlier_run(session.run, session.config, digest)
    if earlier is not None:
        _warm_start_(session, earlier)
    if not path.is_file():
        session.watcher.note("measuring what each unit of the base is worth")
        largest = {kind: max(ratios) for kind, ratios in session.space.base_ratios().items()}
        write_json(path, measure_tables(bench, analysis, section, largest))


def _warm_start_(session: Session, earlier: RunFolder) -> None:
    """Take what an earlier run has found; from one that is damaged as much as comes before the damage."""
    session.watcher.note(f"taking files, tables and shared weights from {earlier.root}")
    bench, config = session.bench, session.config
    try:
        answers = answers_folder(
            session.run.baseline, bench.base, bench.data, config.training.views, bench.acceleration
        )
        take_answers_(answers, earlier)
        take_files_(session.run, earlier, config.limits, session.space.exact)
        take_over_(session.run, earlier)
    except Exception as error:  # whatever lies in a folder that is not this run's
        session.watcher.note(f"going on without the rest of it: {first_line(error)}")


def begin_(ladder: Ladder, family: str) -> None:
    """Let a family take part, with the solver's own front as its first plans; done once in a run."""
    session = ladder.session
    if family in session.study.user_attrs.get(BEGUN, []):
        return
    plans = list(solver_plans(ladder.guide, family, session.config.study.timeout_s))
    with exclusive(session.run.root / "ask.lock"):
        # its plans wait for its shared weights from the moment they are there
        if family not in ladder.families:
            ladder.join_(family)
        enqueue(session, plans, "sampled", is_guided=True)
        session.study.set_user_attr(BEGUN, [*session.study.user_attrs.get(BEGUN, []), family])


def _disagreement(ladder: Ladder) -> str | None:
    """Why a member of the shared weights does not compute what the same network does; None if it does."""
    if not ladder.session.space.section.base:
        return None
    speedup, smaller = ladder.guide.easiest()
    plan = ladder.guide.base_plan(Targets(speedup, smaller, 4.0), DistillationSpec(), 0)
    found = ladder.shared.disagreement(plan)
    return None if found <= TOLERANCE else f"a member's outputs differ from its network's by {found:.1e}"
