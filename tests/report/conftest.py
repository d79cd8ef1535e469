"""The made-up run that the tests of the report share."""

from __future__ import annotations

import pytest
from made_up_run import Run, make_run


@pytest.fixture(scope="session")
def run() -> Run:
    return make_run()
