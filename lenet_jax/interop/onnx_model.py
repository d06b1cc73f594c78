"""A trained network as an ONNX model, for onnxruntime and everything else that reads ONNX."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lenet_jax.core.model import IMAGE_SIZE, model_for
from lenet_jax.interop.pytorch import to_state_dict

# Of June 2022: today's readers of ONNX support these, and no operation here is newer.
OPSET, IR_VERSION = 17, 8


def to_onnx(params: Mapping[str, Any], mean: Any, std: Any, classes: Sequence[str]) -> bytes:
    """The serialized model: `pixels` in, `logits` out. Its metadata name the classes."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = model_for(params)
    shape = ["batch", IMAGE_SIZE, IMAGE_SIZE, model.in_channels]
    weights = to_state_dict(params)  # ONNX has PyTorch's layouts
    constants = {"white": 255, "mean": mean, "std": std}
    weights |= {name: np.float32(value) for name, value in constants.items()}
    graph = helper.make_graph(
        _nodes(),
        "LeNet",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", model.num_classes])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx_model = helper.make_model(
        graph,
        producer_name="lenet_jax",
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    helper.set_model_props(onnx_model, {"classes": json.dumps(list(classes))})
    onnx.checker.check_model(onnx_model, full_check=True)
    return onnx_model.SerializeToString()


def _nodes() -> list[Any]:
    """The graph's operations, in order; their inputs are previous outputs, or weights."""
    from onnx import TensorProto, helper

    nodes: list[Any] = []

    def then(operation: str, x: str, *arguments: str, **attributes: Any) -> str:
        output = f"{operation.lower()}_{len(nodes)}"
        nodes.append(helper.make_node(operation, [x, *arguments], [output], output, **attributes))
        return output

    x = then("Cast", "pixels", to=TensorProto.FLOAT)
    x = then("Div", then("Sub", then("Div", x, "white"), "mean"), "std")
    x = then("Transpose", x, perm=[0, 3, 1, 2])  # [batch, C, 32, 32]
    for name in ("conv1", "conv2"):  # [batch, 6, 14, 14], [batch, 16, 5, 5]
        x = then("Relu", then("Conv", x, f"{name}.weight", f"{name}.bias"))
        x = then("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = then("Flatten", x)  # [batch, 400]
    for name in ("fc1", "fc2"):  # [batch, 120], [batch, 84]
        x = then("Relu", then("Gemm", x, f"{name}.weight", f"{name}.bias", transB=1))
    last = ["fc3.weight", "fc3.bias"]
    nodes.append(helper.make_node("Gemm", [x, *last], ["logits"], "logits", transB=1))
    return nodes
