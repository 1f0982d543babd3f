"""An estimate of a training step's memory, from the traced graph."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

# Outputs of these operations are kept from the forward to the backward pass.
_KEPT = {
    "Conv2D",
    "DepthwiseConv2dNative",
    "FusedBatchNormV3",
    "MatMul",
    "BatchMatMulV2",
    "Relu",
    "Relu6",
    "AddV2",
    "ConcatV2",
    "ResizeBilinear",
    "SpaceToBatchND",
}


def _all_graphs(graph: Any) -> list[Any]:
    """Returns a function's graph and those of the functions that it calls."""
    functions = getattr(graph, "_functions", None) or {}
    inner = [getattr(f, "graph", None) for f in functions.values()]
    return [graph] + [g for g in inner if g is not None]


def activation_bytes(graph: Any) -> int:
    """Sums the sizes of the forward activations that the backward pass needs."""
    total = 0
    for inner in _all_graphs(graph):
        for operation in inner.get_operations():
            if operation.type in _KEPT and not operation.name.startswith("gradient"):
                output = operation.outputs[0]
                if output.shape.is_fully_defined():
                    total += output.shape.num_elements() * output.dtype.size
    return total


def describe(step_function: Callable, iterator: Any, variables: Sequence[tf.Variable]) -> str:
    """Returns one line with the estimated memory of a training step.

    The step is traced here, once; the first step uses the same trace.
    """
    graph = step_function.get_concrete_function(iterator).graph
    # Weights, gradients and one optimiser slot.
    parameters = 3 * sum(v.shape.num_elements() * v.dtype.size for v in variables)
    total = parameters + activation_bytes(graph)
    line = (
        f"memory: about {total / 2**30:.1f} GiB for a step "
        f"({parameters / 2**30:.1f} GiB weights, gradients and momentum; the rest activations)"
    )
    if not tf.config.list_physical_devices("GPU") and total > _physical_memory():
        line += (
            f"\nwarning: this machine has {_physical_memory() / 2**30:.1f} GiB; if training ends "
            "without a word, take a smaller --train_batch_size or --train_crop_size, or "
            "--gradient_accumulation_steps"
        )
    return line


def _physical_memory() -> int:
    """Returns the bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
