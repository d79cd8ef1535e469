"""Where a trial's wall time goes, by stage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class StageClock:
    """Sums wall seconds under the name of the stage that spent them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Charge the body's wall time to ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.charge(name, time.perf_counter() - start)

    def charge(self, name: str, seconds: float) -> None:
        """Add seconds to a stage, or with a negative sign take them from it."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
