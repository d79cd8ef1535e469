"""Which parameters decide an objective: PED-ANOVA on the trials of a study.

PED-ANOVA (Watanabe et al. 2023; conditional form 2026) is Optuna's one evaluator that weighs parameters which
exist in some trials only. The others keep the intersection of all trials, which for a study of two families
would leave out every decision on architecture and layers.
"""

from __future__ import annotations

import html
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import optuna
import plotly.graph_objects as go
from optuna.trial import FrozenTrial, TrialState
from plotly.subplots import make_subplots

from autocompress.candidate import Candidate, Origin
from autocompress.engine import pareto
from autocompress.report.style import FRONT_COLOUR, GRID, layout

if TYPE_CHECKING:
    from optuna.importance import PedAnovaImportanceEvaluator

OBJECTIVES = ("validation drop", "size", "latency")
LEAST_TRIALS = 20
"""Below this a tenth or even a quarter of the trials is too few to fit a density to."""
_TOP_TRIALS = 5
SHOWN = 12


class Importance(NamedTuple):
    """Shares (summing to 1) by objective and parameter; in which share of the trials each parameter was."""

    trials: int
    shares: dict[str, dict[str, float]]
    presence: dict[str, float]


def importance(study: optuna.Study | None, candidates: Sequence[Candidate]) -> Importance | None:
    """Importance of each parameter for reaching the best trials of each objective.

    The objectives are read from the candidates' measurements, so that the answer is the same for studies with
    one objective and with three. Continued trials are left out: they repeat their parent's parameters.

    Returns:
        None without a study or with fewer than ``LEAST_TRIALS`` measured trials.
    """
    vectors = _vectors(candidates)
    trials = [] if study is None else [t for t in _complete(study) if t.number in vectors and t.params]
    if study is None or len(trials) < LEAST_TRIALS:
        return None
    from optuna.importance import PedAnovaImportanceEvaluator  # here, because it imports scikit-learn

    # Optuna advises at least 5 trials among the best.
    evaluator = PedAnovaImportanceEvaluator(target_quantile=max(0.1, _TOP_TRIALS / len(trials)))
    parameters = sorted({name for trial in trials for name in trial.params})
    shares = {
        objective: _shares(study, evaluator, parameters, {number: v[index] for number, v in vectors.items()})
        for index, objective in enumerate(OBJECTIVES)
    }
    presence = {name: sum(name in trial.params for trial in trials) / len(trials) for name in parameters}
    return Importance(len(trials), shares, presence)


def most_important(found: Importance, count: int = SHOWN) -> list[str]:
    """Parameters by their largest share in any objective, largest first."""
    largest = {name: max(shares[name] for shares in found.shares.values()) for name in found.presence}
    return sorted(largest, key=lambda name: -largest[name])[:count]


def draw_importance(found: Importance) -> go.Figure:
    """A panel of bars for each objective; a parameter's label says in how many of the trials it was."""
    names = most_important(found)[::-1]
    labels = [f"{html.escape(name)}  <i>{found.presence[name]:.0%} of trials</i> " for name in names]
    titles = [_panel_title(objective, shares, names) for objective, shares in found.shares.items()]
    figure = make_subplots(cols=len(titles), shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=titles)
    for column, shares in enumerate(found.shares.values(), start=1):
        values = [shares[name] for name in names]
        figure.add_bar(
            x=values, y=labels, orientation="h", marker={"color": FRONT_COLOUR}, row=1, col=column,
            hovertemplate="%{y}: %{x:.1%}<extra></extra>",
        )  # fmt: skip
    figure.update_layout(layout(height=90 + 26 * len(names), showlegend=False))
    figure.update_xaxes(tickformat=".0%", gridcolor=GRID, rangemode="tozero", nticks=5)
    figure.update_yaxes(automargin=True)
    figure.update_layout(margin={"t": 48, "b": 36})
    figure.update_annotations(font={"size": 13})
    return figure


def _panel_title(objective: str, shares: Mapping[str, float], shown: Sequence[str]) -> str:
    covered = sum(shares[name] for name in shown)
    return f"<b>{objective}</b><br>{covered:.0%} of the total is shown"


def _vectors(candidates: Sequence[Candidate]) -> dict[int, pareto.ObjectiveVector]:
    fresh = [(c.trial, c.measurement) for c in candidates if c.origin is not Origin.CONTINUED]
    return {trial: pareto.objective_vector(m) for trial, m in fresh if m and m.validation and m.latency}


def _complete(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _shares(
    study: optuna.Study,
    evaluator: PedAnovaImportanceEvaluator,
    parameters: list[str],
    values: Mapping[int, float],
) -> dict[str, float]:
    from optuna.importance import get_param_importances

    def target(trial: FrozenTrial) -> float:
        return values.get(trial.number, math.nan)  # Optuna leaves out what is not finite

    with warnings.catch_warnings():
        # It warns that low targets count as good, which is meant, and of rare parameters, which labels say.
        warnings.simplefilter("ignore")
        found = get_param_importances(study, evaluator=evaluator, params=parameters, target=target)
    return {name: float(share) for name, share in found.items()}
