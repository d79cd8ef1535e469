"""What a refusal says."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from autocompress.errors import DataError, UserError


def refusal(call: Callable[[], object], parts: Sequence[str] = (), kind: type[UserError] = DataError) -> str:
    """The message of the refusal: one line of a rule, a value and a step, with these parts in it."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert message.count("; ") >= 2, message
    for part in parts:
        assert part in message, message
    return message
