"""The trained network as a program that runs without this package: StableHLO and ONNX.

Both take the pixels as they are, uint8 [batch, 32, 32, 1], white on black and of any number, and
give float32 logits [batch, 10]: what `epoch.predict` computes. The parameters and the run's mean
and deviation are inside, so that nobody who takes the file elsewhere can normalise otherwise.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lenet_jax.core.epoch import normalize
from lenet_jax.core.model import IMAGE_SHAPE, NUM_CLASSES, LeNet
from lenet_jax.core.ops import conv_relu_pool_plain
from lenet_jax.interop.pytorch import to_state_dict

PLATFORMS = ("cpu", "cuda", "tpu")
# Of June 2022: whatever reads ONNX today reads these, and no operation here is younger.
ONNX_OPSET, ONNX_IR = 17, 8


def to_stablehlo(params: Mapping[str, Any], mean: float, std: float) -> bytes:
    """The program as `jax.export` keeps it: StableHLO with a calling convention.

    It runs with JAX alone, on any of `PLATFORMS`: `jax.export.deserialize(content).call(pixels)`.
    """
    # The plain operation: the other one is written for the lanes of a CPU.
    model = LeNet(conv_relu_pool=conv_relu_pool_plain)

    def logits(pixels: jax.Array) -> jax.Array:
        return model.apply({"params": params}, normalize(pixels, mean, std))

    (batch,) = jax.export.symbolic_shape("batch")
    pixels = jax.ShapeDtypeStruct((batch, *IMAGE_SHAPE), jnp.uint8)
    return jax.export.export(jax.jit(logits), platforms=PLATFORMS)(pixels).serialize()


def to_onnx(params: Mapping[str, Any], mean: float, std: float) -> bytes:
    """The program as an ONNX model, for onnxruntime and others: `pixels` in, `logits` out."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights = [], to_state_dict(params)  # ONNX has PyTorch's layouts
    weights |= {
        name: np.float32(value) for name, value in (("white", 255), ("mean", mean), ("std", std))
    }

    def then(operation: str, x: str, *arguments: str, **attributes: Any) -> str:
        """Adds a node and returns the name of its output."""
        output = f"{operation.lower()}_{len(nodes)}"
        nodes.append(helper.make_node(operation, [x, *arguments], [output], output, **attributes))
        return output

    x = then("Cast", "pixels", to=TensorProto.FLOAT)
    x = then("Div", then("Sub", then("Div", x, "white"), "mean"), "std")
    x = then("Transpose", x, perm=[0, 3, 1, 2])  # [batch, 1, 32, 32]
    for name in ("conv1", "conv2"):  # [batch, 6, 14, 14], [batch, 16, 5, 5]
        x = then("Relu", then("Conv", x, f"{name}.weight", f"{name}.bias"))
        x = then("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = then("Flatten", x)  # [batch, 400]
    for name in ("fc1", "fc2"):  # [batch, 120], [batch, 84]
        x = then("Relu", then("Gemm", x, f"{name}.weight", f"{name}.bias", transB=1))
    last = ["fc3.weight", "fc3.bias"]
    nodes.append(helper.make_node("Gemm", [x, *last], ["logits"], "logits", transB=1))
    graph = helper.make_graph(
        nodes,
        "LeNet",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", *IMAGE_SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", NUM_CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(
        graph,
        producer_name="lenet_jax",
        opset_imports=[helper.make_opsetid("", ONNX_OPSET)],
        ir_version=ONNX_IR,
    )
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()
