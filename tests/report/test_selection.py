"""The chosen trial is the one that brute force finds, and an expression is only ever read, never run."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.errors import RunError
from autocompress.report.frame import candidates_frame
from autocompress.report.selection import select_best

Row = dict[str, Any]
NUMBERS = ("val_accuracy", "latency_ms", "size_bytes", "h")
FLAGS = ("on_front", "noisy")
KINDS = {
    "trial": "Int64", "feasible": "bool", "on_front": "bool", "noisy": "bool", "origin": "object",
    "size_bytes": "Int64", "test_accuracy": "float64", "val_accuracy": "float64", "latency_ms": "float64",
    "h": "float64",
}  # fmt: skip


def frame_of(rows: list[Row]) -> pd.DataFrame:
    """A table with the column types of the real one."""
    return pd.DataFrame(rows, columns=list(KINDS)).astype(KINDS)


def row(trial: int, **values: Any) -> Row:
    defaults = {"feasible": True, "on_front": True, "noisy": False, "origin": "sampled", "size_bytes": 100,
                "test_accuracy": 0.5, "val_accuracy": 0.9, "latency_ms": 1.0, "h": 0.5}  # fmt: skip
    return defaults | values | {"trial": trial}


# --- brute force --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Term:
    """A piece of an expression and what it is worth for one row; None is unknown."""

    text: str
    value: Callable[[Row], Any]


def known(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def arithmetic(left: Term, symbol: str, right: Term) -> Term:
    operation = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}[symbol]

    def value(row: Row) -> float | None:
        a, b = left.value(row), right.value(row)
        if a is None or b is None or (symbol == "/" and b == 0):
            return None
        return known(operation(a, b))

    return Term(f"({left.text} {symbol} {right.text})", value)


def comparison(terms: list[Term], symbols: list[str]) -> Term:
    """A chain such as ``a < b <= c``."""
    operations = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq,
                  "!=": operator.ne}  # fmt: skip

    def value(row: Row) -> bool | None:
        numbers = [term.value(row) for term in terms]
        parts = [
            None if a is None or b is None else operations[symbol](a, b)
            for a, symbol, b in zip(numbers, symbols, numbers[1:], strict=False)
        ]
        return every(parts)

    text = terms[0].text + "".join(f" {symbol} {term.text}" for symbol, term in zip(symbols, terms[1:], strict=True))
    return Term(text, value)


def every(parts: list[bool | None]) -> bool | None:
    return False if False in parts else (None if None in parts else True)


def negated(part: bool | None) -> bool | None:
    return None if part is None else not part


def conjunction(left: Term, right: Term) -> Term:
    return Term(f"({left.text} and {right.text})", lambda row: every([left.value(row), right.value(row)]))


def disjunction(left: Term, right: Term) -> Term:
    return Term(
        f"({left.text} or {right.text})",
        lambda row: negated(every([negated(left.value(row)), negated(right.value(row))])),
    )


def column(name: str) -> Term:
    return Term(name, lambda row: None if row[name] is None else row[name])


GRID = [-1.0, 0.0, 0.5, 1.0, 2.0]
atoms = st.one_of(
    st.sampled_from(NUMBERS).map(column), st.sampled_from(GRID).map(lambda x: Term(repr(x), lambda row: x))
)
numbers = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.builds(arithmetic, inner, st.sampled_from("+-*/"), inner),
        inner.map(lambda t: Term(f"(-{t.text})", lambda row: None if (v := t.value(row)) is None else -v)),
    ),
    max_leaves=4,
)
symbols = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
comparisons = st.integers(1, 2).flatmap(
    lambda n: st.builds(
        comparison,
        st.lists(numbers, min_size=n + 1, max_size=n + 1),
        st.lists(symbols, min_size=n, max_size=n),
    )
)
texts = st.builds(
    lambda symbol, text: Term(f"origin {symbol} '{text}'", lambda row: (row["origin"] == text) is (symbol == "==")),
    st.sampled_from(["==", "!="]),
    st.sampled_from(["sampled", "enqueued", "where"]),
)
conditions = st.recursive(
    st.one_of(comparisons, texts, st.sampled_from(FLAGS).map(column)),
    lambda inner: st.one_of(
        st.builds(conjunction, inner, inner),
        st.builds(disjunction, inner, inner),
        inner.map(lambda t: Term(f"(not {t.text})", lambda row: negated(t.value(row)))),
    ),
    max_leaves=4,
)
cells = st.one_of(st.none(), st.sampled_from(GRID))
tables = st.lists(
    st.fixed_dictionaries(
        {
            "feasible": st.sampled_from([True, True, False]),
            "on_front": st.booleans(),
            "noisy": st.booleans(),
            "origin": st.sampled_from(["sampled", "enqueued"]),
            "size_bytes": st.one_of(st.none(), st.integers(-1, 2)),
            "test_accuracy": cells,
            "val_accuracy": cells,
            "latency_ms": cells,
            "h": cells,
        }
    ),
    max_size=8,
)


@settings(max_examples=400, deadline=None)
@given(rows=tables, direction=st.sampled_from(["min", "max"]), target=numbers, condition=st.none() | conditions)
def test_the_choice_equals_brute_force(rows: list[Row], direction: str, target: Term, condition: Term | None) -> None:
    rows = [row | {"trial": 3 * number} for number, row in enumerate(rows)]
    expression = f"{direction} {target.text}" + (f" where {condition.text}" if condition else "")
    sign = 1 if direction == "max" else -1
    ranked = [
        (sign * score, row["on_front"], -row["trial"])
        for row in rows
        if row["feasible"] and (condition is None or condition.value(row) is True)
        if (score := target.value(row)) is not None
    ]
    if not ranked:
        with pytest.raises(RunError):
            select_best(frame_of(rows), expression)
    else:
        assert select_best(frame_of(rows), expression) == -max(ranked)[2]


# --- what users write ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(run: Any) -> pd.DataFrame:
    return candidates_frame(run.candidates, run.baseline, run.config.objective)


def usable(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["feasible"]].set_index("trial")


def test_the_fastest_within_a_drop(real: pd.DataFrame) -> None:
    within = usable(real)[lambda t: t["val_drop_points"] <= 1]
    chosen = select_best(real, "max latency_speedup where val_drop_points <= 1")
    assert 1 < len(within) < len(usable(real))
    assert chosen == within["latency_speedup"].idxmax()


def test_the_smallest_of_two_conditions(real: pd.DataFrame) -> None:
    within = usable(real)[lambda t: (t["val_accuracy"] > 0.87) & (t["latency_speedup"] >= 4)]
    chosen = select_best(real, "min size_bytes where val_accuracy > 0.87 and latency_speedup >= 4")
    assert within.loc[chosen, "size_bytes"] == within["size_bytes"].min()


def test_what_was_enqueued_can_be_left_out(real: pd.DataFrame) -> None:
    best = usable(real)[lambda t: t["origin"] != "enqueued"]["h"].idxmax()
    assert select_best(real, "max h where origin != 'enqueued'") == best


@pytest.mark.parametrize(
    ("expression", "same"),
    [
        ("h", "max h"),
        ("val_accuracy", "max val_accuracy"),
        ("latency_ms where on_front", "min latency_ms where on_front"),
        ("size_ratio", "min size_ratio"),
        ("val_drop_points", "min val_drop_points"),
        ("max(h)where(on_front)", "max h where on_front"),
        ("  max   h\twhere\non_front ", "max h where on_front"),
        ("max h where noisy == False", "max h where not noisy"),
        ("max h where 0.8 < val_accuracy < 0.88", "max h where val_accuracy > 0.8 and val_accuracy < 0.88"),
    ],
)
def test_the_same_choice_in_other_words(real: pd.DataFrame, expression: str, same: str) -> None:
    assert select_best(real, expression) == select_best(real, same)


def test_infeasible_and_incomplete_candidates_are_never_chosen(real: pd.DataFrame) -> None:
    assert not real["feasible"].all()
    for column in ("trial", "val_drop_points", "latency_ratio", "size_bytes"):
        for direction in ("min", "max"):
            assert select_best(real, f"{direction} {column}") in usable(real).index


def test_of_equal_ones_a_member_of_the_front_wins_then_the_earliest() -> None:
    rows = [row(4, on_front=False), row(5), row(6), row(7, h=0.1)]
    assert select_best(frame_of(rows), "max h") == 5
    assert select_best(frame_of(rows), "max h where trial != 5 and trial != 6") == 4
    assert select_best(frame_of(rows), "max h where not on_front") == 4


def test_what_is_unknown_is_not_chosen_unless_the_rest_decides() -> None:
    rows = [row(0, latency_ms=None, h=9.0), row(1, latency_ms=2.0)]
    for condition in ("latency_ms < 5", "not latency_ms > 5", "latency_ms != 7", "latency_ms == latency_ms"):
        assert select_best(frame_of(rows), f"max h where {condition}") == 1
    assert select_best(frame_of(rows), "max h where latency_ms < 5 or h > 1") == 0


# --- what is refused ----------------------------------------------------------------------------------------

FORBIDDEN = [
    "__import__('pathlib').Path('{file}').touch()",
    "(lambda: open('{file}', 'w'))()",
    "[open('{file}', 'w') for _ in (1,)]",
    "{{open('{file}', 'w') for _ in (1,)}}",
    "{{1: open('{file}', 'w')}}",
    "f\"{{open('{file}', 'w')}}\"",
    "(h := open('{file}', 'w'))",
    "h if open('{file}', 'w') else h",
    "h.__class__.__mro__",
    "h.values",
    "h[0]",
    "h[open('{file}', 'w')]",
    "__class__",
    "@h",
    "`h`",
    "h; open('{file}', 'w')",
    "abs(h)",
    "h ** 99999999",
    "h // 2",
    "h % 2",
    "h << 2",
    "h & h",
    "~h",
    "(h, h)",
    "*h",
    "await h",
    "(yield h)",
    "...",
    "None",
    "1j",
    "b'h'",
    "'h'",
    "h is h",
    "h in h",
    "h == 'sampled'",
    "origin + 'x'",
    "origin < 'x'",
    "'a' == 'a'",
    "noisy < on_front",
    "noisy + 1",
    "not h",
    "h and h",
    "h = 1",
    "import os",
    "h\x00",
    "h #",
    "(h",
    "",
    " ",
]


@pytest.mark.parametrize("form", FORBIDDEN)
@pytest.mark.parametrize("expression", ["{}", "max {}", "max h where {}", "max h where {} > 0"])
def test_nothing_but_the_grammar_is_read_and_nothing_is_run(tmp_path: Path, form: str, expression: str) -> None:
    file = tmp_path / "touched"
    with pytest.raises(RunError) as failure:
        select_best(frame_of([row(0)]), expression.replace("{}", form.format(file=file)))
    assert not file.exists()
    assert "\n" not in str(failure.value)
    assert str(failure.value).startswith("--best is '[min|max] VALUE [where CONDITION]'; ")


@pytest.mark.parametrize(
    "expression",
    [
        "max " + "(" * 400 + "h",
        "max " + "-" * 490 + "h",
        "max " + "not " * 120 + "noisy",
        "max 1" + "0" * 400,
        "max h" + " + h" * 200,
        "max h where " + "x" * 10_000,
    ],
)
def test_large_expressions_end_in_one_short_line_or_a_choice(expression: str) -> None:
    try:
        assert select_best(frame_of([row(0)]), expression) == 0
    except RunError as error:
        assert len(str(error)) < 700 and "\n" not in str(error)


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("max test_accuracy", "test_accuracy is a test column; use a val_ one"),
        ("max h where test_accuracy > 0.5", "validation chooses, test only reports"),
        ("max h where h > 0 or 1 - test_anything < 2", "test_anything is a test column"),
        ("test_drop_points", "test_drop_points is a test column"),
        ("max val_acuracy", "no column 'val_acuracy'; did you mean val_accuracy?"),
        ("max h where latencyms < 1", "did you mean latency_ms?"),
        ("max test", "no column 'test'; columns are trial, feasible"),
        ("max origin", "'origin' is not a number"),
        ("max h where origin", "'origin' is not a condition"),
        ("origin", "'origin' is not a number"),
        ("trial", "'trial' may be better low or high; begin with min or max"),
        ("h - size_bytes where noisy", "begin with min or max"),
        ("max", "VALUE is empty"),
        ("max where h > 0", "VALUE is empty"),
        ("max h where", "CONDITION is empty"),
        ("max h where origin = 'sampled'", "equality is =="),
        ("max h where h > ", "CONDITION is not understood"),
    ],
)
def test_errors_say_what_to_do(expression: str, said: str) -> None:
    with pytest.raises(RunError) as failure:
        select_best(frame_of([row(0)]), expression)
    assert said in str(failure.value)


def test_no_suggestion_names_a_test_column() -> None:
    with pytest.raises(RunError) as failure:
        select_best(frame_of([row(0)]), "max tst_accuracy")
    assert "test_" not in str(failure.value).partition("there is no column")[2]


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("latency_ms < 0.1", "none of 2 complete candidates within the limits meets the condition"),
        ("latency_ms < 0.1", "trial 8 is nearest with latency_ms = 0.5"),
        ("0.95 <= val_accuracy", "trial 7 is nearest with val_accuracy = 0.9"),
        ("h > 0 and val_accuracy - 0.05 > 0.9", "trial 7 is nearest with val_accuracy - 0.05 = 0.85"),
        ("trial > 7 and val_accuracy > 0.85", "its parts are met, but not by one candidate"),
        ("origin == 'enqueued'", "nobody meets origin == 'enqueued'"),
        ("h / 0 > 1", "a figure in it is unknown for all"),
    ],
)
def test_an_unmet_condition_names_the_nearest_miss(condition: str, said: str) -> None:
    rows = [row(7), row(8, latency_ms=0.5, val_accuracy=0.8), row(9, latency_ms=0.01, feasible=False)]
    with pytest.raises(RunError) as failure:
        select_best(frame_of(rows), f"max h where {condition}")
    assert said in str(failure.value)


def test_a_run_without_candidates_says_so() -> None:
    for rows in ([], [row(0, feasible=False)]):
        with pytest.raises(RunError, match="no complete candidate within the limits"):
            select_best(frame_of(rows), "max h")
    with pytest.raises(RunError, match="unknown for all 1 candidates"):
        select_best(frame_of([row(0, h=None)]), "max h")
