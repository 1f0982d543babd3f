"""Writes training steps as StableHLO, for a machine with a GPU and without TensorFlow.

    python benchmarks/gpu/export.py --out=steps
    python benchmarks/gpu/export.py --out=small --methods supervised --backbone=mobilenet_v2 \\
        --crop=65 --batch 8 --precision=float32 --checked_steps=1

Each is a whole step of the project's trainer: forward, backward, update. Nothing is computed, so
that a machine without a GPU writes the large ones in a minute each. A step is two files:
`<name>.mlirbc`, the program, and `<name>.json`, its parameters and results. Weights are parameters;
their values are not written, only the mean and deviation that each variable starts with. With
--checked_steps TensorFlow makes so many steps here, compiled with XLA, and `<name>.npz` holds the
values before, the losses, and the values after, for `run.py --check`.
"""

import argparse
import json
import pathlib
import re
import sys
from typing import Any

import tfseg  # noqa: F401  (selects Keras 2 before TensorFlow is imported)

import numpy as np
import tensorflow as tf

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

from method_cost import Variant, make_trainer

from tfseg.models import BACKBONES

METHODS = ("supervised", "pseudoseg", "unimatch")
# By XLA's names.
_TYPES = {
    "pred": "bool",
    "bf16": "bfloat16",
    "f32": "float32",
    "f64": "float64",
    "s32": "int32",
    "s64": "int64",
    "u32": "uint32",
    "u64": "uint64",
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, help="folder for the files")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--backbone", default="xception_65", choices=list(BACKBONES))
    parser.add_argument("--crop", type=int, default=513, help="pixels, both sides")
    parser.add_argument(
        "--batch", type=int, nargs="+", default=(16, 32), help="images of each stream"
    )
    parser.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--recompute", default="none", choices=("none", "backbone"))
    parser.add_argument(
        "--checked_steps", type=int, default=0, help="steps that TensorFlow makes for comparison"
    )
    return parser.parse_args()


def step_of(trainer: Any) -> tf.types.experimental.PolymorphicFunction:
    """Returns a trainer's whole step as one compiled function: of a batch, to losses by name."""

    def step(batch: Any) -> dict[str, tf.Tensor]:
        return trainer.step_function.python_function(iter([batch]))["losses"]

    return tf.function(step, jit_compile=True, autograph=False)


def _names(batch: Any) -> list[str]:
    """Returns the names of a batch's tensors, in the order in which they are parameters."""
    return [f"{stream}/{key}" for stream in sorted(batch) for key in sorted(batch[stream])]


def describe(step: Any, batch: Any) -> tuple[bytes, list[dict], list[dict], list[tf.Tensor]]:
    """Compiles a step to StableHLO.

    Args:
      step: of `step_of`.
      batch: tensors by stream and name.

    Returns:
      The program; its parameters, the batch first; its results; and the handles of the variables
      among the parameters, in their order. A result names a loss, or the parameter whose next
      value it is.

    Raises:
      ValueError: the step needs something that is neither in the batch nor a variable, or the
        program's results are not losses and variables.
    """
    function = step.get_concrete_function(batch)
    handles = function.captured_inputs
    if any(handle.dtype != tf.resource for handle in handles):
        raise ValueError("the step takes a tensor from outside that is no variable")
    compile_to = step.experimental_get_compiler_ir(batch)
    # Its first line alone tells types, and which result takes the place of which parameter.
    header = compile_to(stage="hlo").split("\n", 1)[0]
    inputs, outputs = re.search(r"entry_computation_layout=\{\((.*)\)->(.*)\}", header).groups()
    parameters, results = _arrays(inputs), _arrays(outputs)
    names = _names(batch)
    for parameter, name, tensor in zip(parameters, names, tf.nest.flatten(batch)):
        wide = tf.cast(tensor, tf.float32)
        parameter |= {"name": name, "low": float(tf.reduce_min(wide))}
        parameter["high"] = float(tf.reduce_max(wide))
    variables = parameters[len(names) :]
    for parameter, handle in zip(variables, handles, strict=True):
        value = _value(handle, parameter["dtype"]).astype(np.float64)
        parameter |= {"mean": float(value.mean()), "stddev": float(value.std())}
    for i, parameter in re.findall(r"\{(\d+)\}: \((\d+), \{\}, (?:may|must)-alias\)", header):
        results[int(i)]["updates"] = int(parameter)
    losses = sorted(function.structured_outputs)
    for result, loss in zip(results, losses):
        result["loss"] = loss
    if any(("loss" in r) == ("updates" in r) for r in results):
        raise ValueError("a result is neither a loss nor a variable")
    return compile_to(stage="stablehlo_serialized"), parameters, results, handles


def _arrays(layout: str) -> list[dict]:
    """Returns type and shape of each array in a part of XLA's layout of a program."""
    return [
        {"dtype": _TYPES[kind], "shape": [int(side) for side in sides.split(",") if side]}
        for kind, sides in re.findall(r"(pred|bf16|[fsu]\d+)\[([\d,]*)\]", layout)
    ]


def _value(handle: tf.Tensor, dtype: str) -> np.ndarray:
    """Returns the present value of a variable."""
    return tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype).numpy()


def _compared(
    step: Any, batch: Any, parameters: list[dict], handles: list[tf.Tensor], steps: int
) -> dict[str, Any]:
    """Makes steps; returns values of parameters before, losses of each step, and values after."""
    images = [tensor.numpy() for tensor in tf.nest.flatten(batch)]
    types = [parameter["dtype"] for parameter in parameters[len(images) :]]

    def values() -> list[np.ndarray]:
        return [_value(handle, dtype) for handle, dtype in zip(handles, types)]

    before = [*images, *values()]
    losses = [tf.nest.flatten(step(batch)) for _ in range(steps)]
    return {
        **{f"before/{i}": value for i, value in enumerate(before)},
        **{f"after/{len(images) + i}": value for i, value in enumerate(values())},
        "losses": np.array([[float(loss) for loss in of_step] for of_step in losses]),
    }


def export(arguments: argparse.Namespace, method: str, batch_size: int) -> str:
    """Writes one step's files; returns a line about them."""
    arguments = argparse.Namespace(**{**vars(arguments), "batch": batch_size})
    trainer = make_trainer(arguments, Variant(method, method))
    batch = next(trainer.iterator)
    step = step_of(trainer)
    program, parameters, results, handles = describe(step, batch)
    name = f"{method}_{arguments.backbone}_{arguments.crop}_{batch_size}_{arguments.precision}"
    name += "_recompute" * (arguments.recompute != "none")
    folder = pathlib.Path(arguments.out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.mlirbc").write_bytes(program)
    manifest = {
        "step": name,
        # Methods with a second stream see an image of each.
        "unit": "images" if len(batch) == 1 else "pairs",
        "batch": batch_size,
        "tensorflow": tf.__version__,
        "parameters": parameters,
        "results": results,
    }
    (folder / f"{name}.json").write_text(json.dumps(manifest) + "\n")
    if arguments.checked_steps:
        values = _compared(step, batch, parameters, handles, arguments.checked_steps)
        np.savez(folder / f"{name}.npz", **values)
    return f"{name}: {len(program)} bytes, {len(parameters)} parameters, {len(results)} results"


def main() -> None:
    arguments = _arguments()
    for batch_size in arguments.batch:
        for method in arguments.methods:
            print(export(arguments, method, batch_size), flush=True)


if __name__ == "__main__":
    main()
