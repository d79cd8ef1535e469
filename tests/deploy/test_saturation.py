"""Whether integer kernels are exact is what the runtime does, and 7-bit weights are exact everywhere."""

from __future__ import annotations

import platform

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from autocompress.deploy.processor import instruction_sets
from autocompress.deploy.saturation import saturates
from autocompress.plan import Precision


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the instruction sets are those of x86")
def test_processors_without_vnni_saturate() -> None:
    assert saturates() is not any("vnni" in name for name in instruction_sets())


@pytest.mark.parametrize("precision", [Precision.W8A8.without_saturation(), Precision.W6A8, Precision.W4A8])
def test_sums_of_the_largest_products_are_exact(precision: Precision) -> None:
    assert precision.weight_bits is not None
    least, terms = -(2 ** (precision.weight_bits - 1)), 64
    for weight in (least, -least - 1):
        weights = numpy_helper.from_array(np.full((terms, 16), weight, np.int8), "w")
        graph = helper.make_graph(
            [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
            "product",
            [helper.make_tensor_value_info("x", TensorProto.UINT8, [2, terms])],
            [helper.make_tensor_value_info("y", TensorProto.INT32, [2, 16])],
            [weights],
        )
        model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        (sums,) = session.run(None, {"x": np.full((2, terms), 255, np.uint8)})
        assert (sums == 255 * weight * terms).all()
