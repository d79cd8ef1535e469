"""Whether the runtime's integer kernels are exact on this processor.

Without VNNI, x86 multiplies unsigned activations by signed weights and adds two products in 16 bits, which saturate:
2 x 255 x 127 does not fit. With weights of 7 bits, 2 x 255 x 64, it does; so ONNX Runtime advises (its documentation
of quantisation, "When and why do I need to try U8U8?", and ``reduce_range``).
"""

from __future__ import annotations

import functools

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from autocompress.deploy.session import PROVIDERS, session_options

SATURATION = "this processor's integer kernels are not exact with 8-bit weights, whose sums may saturate"
_TERMS, _COLUMNS = 64, 16
_LARGEST_ACTIVATION, _LARGEST_WEIGHT = 255, 127


@functools.cache
def saturates() -> bool:
    """Whether sums of the largest products come out too small; computed in the runtime, not looked up."""
    weights = numpy_helper.from_array(np.full((_TERMS, _COLUMNS), _LARGEST_WEIGHT, np.int8), "weights")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["activations", "weights"], ["sums"])],
        "sums",
        [helper.make_tensor_value_info("activations", TensorProto.UINT8, [1, _TERMS])],
        [helper.make_tensor_value_info("sums", TensorProto.INT32, [1, _COLUMNS])],
        [weights],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    session = ort.InferenceSession(model.SerializeToString(), session_options(1), providers=PROVIDERS)
    activations = np.full((1, _TERMS), _LARGEST_ACTIVATION, np.uint8)
    (sums,) = session.run(None, {"activations": activations})
    return bool((sums != _TERMS * _LARGEST_ACTIVATION * _LARGEST_WEIGHT).any())
