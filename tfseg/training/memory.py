"""An estimate of a training step's memory, from the traced graph."""

import collections
import re
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfseg import machine
from tfseg.errors import UserError
from tfseg.models.layers.recomputation import FIRST_SCOPE, KEPT

_GIB = 2**30
# The estimate counts everything that a step keeps; it never needs so much less than that.
_HOPELESS = 4
_FIX = (
    "take a smaller --train_batch_size or --train_crop_size, --gradient_accumulation_steps, or "
    "--recompute=backbone"
)
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
# A unit that is computed again, and an operation in it.
_UNIT = re.compile(rf"(.*{FIRST_SCOPE}(?:_\d+)?)/(.+)")


def _all_graphs(graph: Any) -> list[Any]:
    """Returns a function's graph and those of the functions that it calls."""
    functions = getattr(graph, "_functions", None) or {}
    inner = [getattr(f, "graph", None) for f in functions.values()]
    return [graph] + [g for g in inner if g is not None]


def activation_bytes(graph: Any) -> int:
    """Sums the sizes of the forward activations that the backward pass needs.

    Of units that are computed again in the backward pass these are their inputs, and once those
    inside the largest unit.
    """
    total, units = 0, collections.Counter()
    for inner in _all_graphs(graph):
        for operation in inner.get_operations():
            if _is_backward(operation):
                continue
            unit = _UNIT.match(operation.name)
            if operation.type in _KEPT:
                if unit is None:
                    total += _bytes(operation.outputs[0])
                else:
                    units[unit.group(1)] += _bytes(operation.outputs[0])
            elif unit is not None and unit.group(2) == KEPT:
                total += _bytes(operation.outputs[0])
    return total + max(units.values(), default=0)


def _is_backward(operation: tf.Operation) -> bool:
    """Whether an operation is of the backward pass."""
    return bool(re.search(r"(^|/)gradient", operation.name))


def _bytes(tensor: tf.Tensor) -> int:
    """Returns the size of a tensor; 0 where it is not known."""
    known = tensor.shape.is_fully_defined()
    return tensor.shape.num_elements() * tensor.dtype.size if known else 0


def describe(step_function: Callable, iterator: Any, variables: Sequence[tf.Variable]) -> str:
    """Returns one line with the estimated memory of a training step, and a warning if it is tight.

    The step is traced here, once; the first step uses the same trace.

    Raises:
      UserError: this machine has far less, and no GPU with memory of its own.
    """
    graph = step_function.get_concrete_function(iterator).graph
    # Weights, gradients and one optimiser slot.
    parameters = 3 * sum(v.shape.num_elements() * v.dtype.size for v in variables)
    total = parameters + activation_bytes(graph)
    line = (
        f"memory: about {total / _GIB:.1f} GiB for a step "
        f"({parameters / _GIB:.1f} GiB weights, gradients and momentum; the rest activations)"
    )
    if tf.config.list_physical_devices("GPU"):
        return line
    warning = warn_or_refuse(total, machine.memory_bytes())
    return f"{line}\n{warning}" if warning else line


def warn_or_refuse(needed: int, present: int) -> str | None:
    """Holds the memory of a step against that of the machine.

    Args:
      needed: estimated bytes.
      present: bytes that this process may use.

    Returns:
      A warning where it is tight, else None.

    Raises:
      UserError: it is hopeless.
    """
    if needed > _HOPELESS * present:
        raise UserError(
            "A training step would need far more memory than this machine has.",
            where="--train_batch_size, --train_crop_size",
            received=f"about {needed / _GIB:.1f} GiB for a step",
            accepted=f"{present / _GIB:.1f} GiB, which this machine has",
            fix=_FIX,
        )
    if needed > present:
        return (
            f"warning: this machine has {present / _GIB:.1f} GiB; if training ends without a word, "
            f"{_FIX}"
        )
    return None
