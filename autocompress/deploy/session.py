"""ONNX Runtime sessions with the options under which everything here is measured."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from autocompress.errors import TrialFailed, first_line

PROVIDERS = ["CPUExecutionProvider"]
_ERRORS_ONLY = 3


def session_options(threads: int) -> ort.SessionOptions:
    """Options of a session on a fixed number of threads: sequential, quiet.

    With more than one thread ONNX Runtime's workers spin while they wait for the next run. They are told
    to stop when a run ends, because the spinning of one session would slow down another that is timed
    beside it, or a training process.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def open_session(path: Path, threads: int, options: ort.SessionOptions | None = None) -> ort.InferenceSession:
    """Load a file on the CPU.

    Args:
        path: an ONNX file.
        threads: intra-op threads; ignored when ``options`` are given.
        options: other options than :func:`session_options`.

    Raises:
        TrialFailed: kind ``runtime``; the runtime does not load the file.
    """
    try:
        return ort.InferenceSession(str(path), options or session_options(threads), providers=PROVIDERS)
    except Exception as error:  # the runtime's own exception classes have no common public base
        raise TrialFailed("runtime", f"{path} does not load: {first_line(error)}") from error


def predict(session: ort.InferenceSession, batches: Iterable[tuple[npt.NDArray[Any], ...]]) -> npt.NDArray[np.float32]:
    """First output of the file for all batches, concatenated: [examples, ...].

    Args:
        session: an open session; its inputs are fed in the file's order.
        batches: at least one tuple with one array [batch, ...] per input of the file.

    Raises:
        TrialFailed: kind ``runtime``; the runtime rejects a batch or a batch has another number of inputs.
    """
    names = [node.name for node in session.get_inputs()]
    output = session.get_outputs()[0].name
    return np.concatenate([_run(session, output, names, batch) for batch in batches])


def _run(
    session: ort.InferenceSession, output: str, names: list[str], batch: tuple[npt.NDArray[Any], ...]
) -> npt.NDArray[np.float32]:
    if len(batch) != len(names):
        raise TrialFailed("runtime", f"the file has the inputs {names}; a batch has {len(batch)} arrays")
    try:
        return np.asarray(session.run([output], dict(zip(names, batch, strict=True)))[0])
    except Exception as error:
        raise TrialFailed("runtime", f"the file does not run: {first_line(error)}") from error
