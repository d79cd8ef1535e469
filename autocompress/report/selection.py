"""``export --best "EXPR"``: one candidate chosen by an expression over the columns of the candidates' table.

::

    [min|max] VALUE [where CONDITION]

    max latency_speedup where val_drop_points <= 1
    min size_bytes where val_accuracy > 0.87 and latency_speedup >= 4
    max val_accuracy - 0.1 * size_ratio where origin != 'enqueued'
    h

VALUE is numbers, columns, ``+ - * /`` and parentheses. CONDITION compares values, in chains too
(``0.8 < val_accuracy < 0.9``), or a text column with a string (``==`` and ``!=``); ``and``, ``or`` and
``not`` join conditions; a column of true or false is one. ``min`` and ``max`` may be left out before a lone
column whose better direction is known: ``latency_ms`` is minimised, ``h`` maximised.

Expressions are parsed to a syntax tree and computed by the few cases of :func:`_value`; nothing in them is
ever executed. A figure that is missing, or divided by zero, is unknown, and so is every comparison with it;
the condition must be true.
"""

from __future__ import annotations

import ast
import difflib
import operator
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autocompress.errors import RunError

_GRAMMAR = "--best is '[min|max] VALUE [where CONDITION]'"
_FORM = re.compile(r"\s*(?:(min|max)\b)?(.*?)(?:\bwhere\b(.*))?", re.DOTALL)
_LONGEST = 500
_LOWER_IS_BETTER = (
    "val_drop_points", "val_drop_low", "val_drop_high",
    "size_bytes", "size_ratio", "compressed_bytes", "compressed_ratio",
    "latency_ms", "latency_p90_ms", "latency_ratio", "latency_ratio_low", "latency_ratio_high",
)  # fmt: skip
_HIGHER_IS_BETTER = ("val_accuracy", "val_low", "val_high", "size_reduction", "latency_speedup", "h")

_Floats = NDArray[np.float64]
_ARITHMETIC: dict[type[ast.operator], Callable[[_Floats, _Floats], _Floats]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
}
_EQUALITIES: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {ast.Eq: operator.eq, ast.NotEq: operator.ne}
_COMPARISONS = _EQUALITIES | {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


@dataclass(frozen=True)
class _Numbers:
    """One number a row; unknown where it is NaN."""

    values: _Floats


@dataclass(frozen=True)
class _Truths:
    """True, false or unknown for each row; pandas joins them by Kleene's logic."""

    values: pd.arrays.BooleanArray


@dataclass(frozen=True)
class _Texts:
    """One text a row."""

    values: NDArray[np.object_]
    literal: bool


_Value = _Numbers | _Truths | _Texts


class _ExpressionError(Exception):
    """What is wrong with an expression and what to do; :func:`select_best` puts the rule before it."""


def select_best(frame: pd.DataFrame, expression: str) -> int:
    """The number of the trial that an expression chooses.

    The choice is among the complete candidates within all limits, on the front or not: a condition may leave
    out the front's members. Of equal ones a member of the front wins, then the earliest.

    Args:
        frame: the table of :func:`autocompress.report.frame.candidates_frame`.
        expression: see the module.

    Raises:
        RunError: the expression is not understood, names an unknown column or one of the test split, has no
            number to choose by, or is met by no candidate.
    """
    rows = frame[frame["feasible"]]
    try:
        with np.errstate(all="ignore"):
            return _chosen(rows, expression)
    except _ExpressionError as problem:
        raise RunError(f"{_GRAMMAR}; {_shown(expression)}: {problem}") from None
    except (RecursionError, OverflowError):
        raise RunError(f"{_GRAMMAR}; {_shown(expression)}: too deep or too large; simplify it") from None


def _shown(expression: str) -> str:
    return repr(expression if len(expression) <= 80 else f"{expression[:77]}...")


def _chosen(rows: pd.DataFrame, expression: str) -> int:
    named_direction, target, condition = _parse(expression)
    score = _numbers(_value(target, rows), target)
    direction = named_direction or _natural_direction(target)
    met = _known_truths(condition, rows)
    fits = met & ~np.isnan(score)
    if not fits.any():
        raise _ExpressionError(_why_none(rows, condition, met))
    ranked = score if direction == "max" else -score
    ties = rows[fits & (ranked == ranked[fits].max())]
    return int(ties.sort_values(["on_front", "trial"], ascending=[False, True])["trial"].iloc[0])


# --- reading ------------------------------------------------------------------------------------------------


def _parse(expression: str) -> tuple[str | None, ast.expr, ast.expr | None]:
    """Direction, value and condition; what was left out is None."""
    if len(expression) > _LONGEST:
        raise _ExpressionError(f"{len(expression)} characters are too long; use at most {_LONGEST}")
    match = _FORM.fullmatch(expression)
    assert match is not None  # every part of the form is optional
    direction, target, condition = match.groups()
    return direction, _tree(target, "VALUE"), None if condition is None else _tree(condition, "CONDITION")


def _tree(text: str, part: str) -> ast.expr:
    if not text.strip():
        raise _ExpressionError(f"{part} is empty; write a column, such as h, or a comparison after where")
    if "#" in text:  # Python would drop the rest as a comment
        raise _ExpressionError(f"{part} has a #; leave it out")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's advice on odd source is not for the user
            return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else "it is not text that can be parsed"
        raise _ExpressionError(f"{part} is not understood ({reason}); {_advice(text)}") from None


def _advice(text: str) -> str:
    if re.search(r"(?<![<>=!])=(?!=)", text):
        return "equality is =="
    return "write it as in 'max latency_speedup where val_drop_points <= 1'"


def _natural_direction(target: ast.expr) -> str:
    column = target.id if isinstance(target, ast.Name) else ""
    if column in _LOWER_IS_BETTER:
        return "min"
    if column in _HIGHER_IS_BETTER:
        return "max"
    raise _ExpressionError(f"{ast.unparse(target)!r} may be better low or high; begin with min or max")


# --- computing ----------------------------------------------------------------------------------------------


def _value(node: ast.expr, rows: pd.DataFrame) -> _Value:
    """Value of a syntax tree for all rows; anything but these cases is refused."""
    match node:
        case ast.Name(id=name):
            return _column(name, rows)
        case ast.Constant(value=bool() as constant):
            return _truths(np.full(len(rows), constant), np.zeros(len(rows), np.bool_))
        case ast.Constant(value=int() | float() as constant):
            return _finite(np.full(len(rows), float(constant)))
        case ast.Constant(value=str() as constant):
            return _Texts(np.full(len(rows), constant, dtype=object), literal=True)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            sides = (_numbers(_value(side, rows), side) for side in (left, right))
            return _finite(_ARITHMETIC[type(op)](*sides))
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as op, operand=operand):
            numbers = _numbers(_value(operand, rows), operand)
            return _Numbers(-numbers if isinstance(op, ast.USub) else numbers)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return _Truths(~_condition(operand, rows))
        case ast.BoolOp(op=op, values=parts):
            join = operator.and_ if isinstance(op, ast.And) else operator.or_
            return _Truths(reduce(join, [_condition(part, rows) for part in parts]))
        case ast.Compare(left=left, ops=ops, comparators=others):
            sides_of = zip([left, *others], ops, others, strict=False)
            return _Truths(reduce(operator.and_, [_comparison(a, op, b, rows) for a, op, b in sides_of]))
    raise _ExpressionError(
        f"{ast.unparse(node)!r} is not allowed; use numbers, columns, + - * /, comparisons, and, or, not"
    )


def _column(name: str, rows: pd.DataFrame) -> _Value:
    if name.startswith("test_"):
        raise _ExpressionError(f"validation chooses, test only reports; {name} is a test column; use a val_ one")
    if name not in rows.columns:
        raise _ExpressionError(f"there is no column {name!r}; {_suggestion(name, rows)}")
    column = rows[name]
    if pd.api.types.is_bool_dtype(column.dtype):
        return _truths(column.to_numpy(dtype=np.bool_), np.zeros(len(rows), np.bool_))
    if pd.api.types.is_numeric_dtype(column.dtype):
        return _finite(column.to_numpy(dtype=np.float64, na_value=np.nan))
    return _Texts(column.to_numpy(dtype=object), literal=False)


def _suggestion(name: str, rows: pd.DataFrame) -> str:
    known = [column for column in rows.columns if not column.startswith("test_")]
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"columns are {', '.join(known)}"


def _numbers(value: _Value, node: ast.expr) -> _Floats:
    if not isinstance(value, _Numbers):
        raise _ExpressionError(f"{ast.unparse(node)!r} is not a number; use a column of numbers, such as latency_ms")
    return value.values


def _condition(node: ast.expr, rows: pd.DataFrame) -> pd.arrays.BooleanArray:
    value = _value(node, rows)
    if not isinstance(value, _Truths):
        shown = ast.unparse(node)
        raise _ExpressionError(f"{shown!r} is not a condition; compare it with something")
    return value.values


def _comparison(left: ast.expr, op: ast.cmpop, right: ast.expr, rows: pd.DataFrame) -> pd.arrays.BooleanArray:
    a, b = _value(left, rows), _value(right, rows)
    shown = ast.unparse(ast.Compare(left=left, ops=[op], comparators=[right]))
    match a, b:
        case _Numbers(values=x), _Numbers(values=y) if type(op) in _COMPARISONS:
            return _truths(_COMPARISONS[type(op)](x, y), np.isnan(x) | np.isnan(y)).values
        case _Truths(values=p), _Truths(values=q) if type(op) in _EQUALITIES:
            joined: pd.arrays.BooleanArray = _EQUALITIES[type(op)](p, q)
            return joined
        case _Texts(values=s), _Texts(values=t) if type(op) in _EQUALITIES and not (a.literal and b.literal):
            unknown = np.asarray(pd.isna(s) | pd.isna(t))
            return _truths(np.asarray(_EQUALITIES[type(op)](s, t), dtype=np.bool_), unknown).values
    raise _ExpressionError(
        f"{shown!r} cannot be compared; compare numbers with numbers (< <= > >= == !=), "
        "a text column with a string (== !=)"
    )


def _finite(values: _Floats) -> _Numbers:
    return _Numbers(np.where(np.isfinite(values), values, np.nan))


def _truths(values: NDArray[np.bool_], unknown: NDArray[np.bool_]) -> _Truths:
    return _Truths(pd.arrays.BooleanArray(values, unknown))


def _known_truths(condition: ast.expr | None, rows: pd.DataFrame) -> NDArray[np.bool_]:
    """Rows for which a condition is true; an unknown one is not."""
    if condition is None:
        return np.ones(len(rows), np.bool_)
    return _condition(condition, rows).to_numpy(dtype=np.bool_, na_value=False)


# --- when nothing is left -----------------------------------------------------------------------------------


def _why_none(rows: pd.DataFrame, condition: ast.expr | None, met: NDArray[np.bool_]) -> str:
    if rows.empty:
        return "the run has no complete candidate within the limits; search on, or relax the limits"
    if met.any() or condition is None:
        return f"the value is unknown for all {met.sum()} candidates in question; choose by another column"
    count = f"none of {len(rows)} complete candidates within the limits meets the condition"
    return f"{count}; {_nearest_miss(condition, rows)}; relax it"


def _nearest_miss(condition: ast.expr, rows: pd.DataFrame) -> str:
    """The candidate nearest to the first part of a condition that nobody meets."""
    match condition:
        case ast.BoolOp(op=ast.And(), values=parts):
            unmet = [part for part in parts if not _known_truths(part, rows).any()]
            return _nearest_miss(unmet[0], rows) if unmet else "its parts are met, but not by one candidate"
        case ast.Compare(left=left, ops=[ast.Lt() | ast.LtE()], comparators=[right]):
            return _least_excess(left, right, rows)
        case ast.Compare(left=left, ops=[ast.Gt() | ast.GtE()], comparators=[right]):
            return _least_excess(right, left, rows)
    return f"nobody meets {ast.unparse(condition)}"


def _least_excess(low: ast.expr, high: ast.expr, rows: pd.DataFrame) -> str:
    """The candidate whose ``low`` exceeds its ``high`` the least, and what it has."""
    difference = _numbers(_value(low, rows), low) - _numbers(_value(high, rows), high)
    if np.isnan(difference).all():
        return "a figure in it is unknown for all"
    nearest = int(np.nanargmin(difference))
    shown = high if isinstance(low, ast.Constant) else low
    found = _numbers(_value(shown, rows), shown)[nearest]
    return f"trial {rows['trial'].iloc[nearest]} is nearest with {ast.unparse(shown)} = {found:.6g}"
