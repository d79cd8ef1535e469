"""What a search tells whoever watches it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from autocompress.analysis import Analysis
from autocompress.candidate import Candidate, Measurement, Origin


class Watcher(Protocol):
    """Called by the search as it goes; all methods return at once."""

    def note(self, text: str) -> None:
        """A step of the preparation, or something the user should know."""

    def baseline(self, measurement: Measurement, analysis: Analysis) -> None:
        """The uncompressed model was measured."""

    def started(self, trial: int, origin: Origin, what: str) -> None:
        """A trial begins."""

    def finished(self, candidate: Candidate, candidates: Sequence[Candidate], progress: float) -> None:
        """A trial ended; ``candidates`` are all so far, ``progress`` in [0, 1] is the share of the totals used."""


class Silent:
    """A watcher that says nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def baseline(self, measurement: Measurement, analysis: Analysis) -> None:
        """Nothing."""

    def started(self, trial: int, origin: Origin, what: str) -> None:
        """Nothing."""

    def finished(self, candidate: Candidate, candidates: Sequence[Candidate], progress: float) -> None:
        """Nothing."""
