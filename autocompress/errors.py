"""What can go wrong, by who has to act.

Each message states the rule, the value that broke it, and the next step, on one line.
"""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something, or the error's type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


class AutocompressError(Exception):
    """Root of all errors raised on purpose."""


class UserError(AutocompressError):
    """The user's input is wrong; the command line ends with status 2 and one line."""


class ConfigError(UserError):
    """A study file or an option is wrong."""


class DataError(UserError):
    """Data are missing, unreadable or do not fit the model."""


class ModelError(UserError):
    """A model or its weights cannot be loaded, traced or exported."""


class RunError(UserError):
    """A run folder, a trial in it or its storage is not what the command needs."""


class TrialFailed(AutocompressError):
    """One candidate could not be made; it is recorded with its reason and the study goes on.

    ``kind`` is a short label under which failures are counted (``export``, ``parity``, ``memory``...).
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class StudyFailed(AutocompressError):
    """A study ended without one usable candidate; the command line ends with status 1."""


class VerificationFailed(AutocompressError):
    """An exported file does not do what its card says; the command line ends with status 1."""


class Interrupted(AutocompressError):
    """The user pressed Ctrl-C; the command line ends with status 1 and says how to go on."""
