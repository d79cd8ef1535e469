"""Sessions run what the file says and fail with one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from autocompress.deploy.session import open_session, predict, session_options
from autocompress.errors import TrialFailed


@pytest.fixture
def difference(tmp_path: Path) -> Path:
    """minuend [batch, 3] - subtrahend [batch, 3]."""
    names = ["minuend", "subtrahend"]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in names]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    node = helper.make_node("Sub", names, ["logits"])
    graph = helper.make_graph([node], "difference", inputs, [output])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    onnx.save(model, tmp_path / "difference.onnx")
    return tmp_path / "difference.onnx"


def test_predict_feeds_inputs_in_order_and_joins_batches(difference: Path) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 5, 3), dtype=np.float32)
    batches = ((a[rows], b[rows]) for rows in (slice(0, 2), slice(2, 5)))
    np.testing.assert_array_equal(predict(open_session(difference, 1), batches), a - b)


@pytest.mark.parametrize("shapes", [[(2, 3)], [(2, 3), (2, 3), (2, 3)], [(2, 3), (2, 4)], [(2, 3), (3,) * 3]])
def test_batches_that_do_not_fit_fail_in_one_line(difference: Path, shapes: list[tuple[int, ...]]) -> None:
    batch = tuple(np.zeros(shape, np.float32) for shape in shapes)
    with pytest.raises(TrialFailed) as failure:
        predict(open_session(difference, 1), [batch])
    assert failure.value.kind == "runtime"
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("content", [None, b"", b"not a model"])
def test_files_that_do_not_load_fail_in_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TrialFailed, match=r"model\.onnx does not load") as failure:
        open_session(path, 1)
    assert failure.value.kind == "runtime"
    assert "\n" not in str(failure.value)


def test_threads_are_fixed_and_stop_spinning() -> None:
    options = session_options(3)
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"
