"""Writes training steps as StableHLO, for a machine with a GPU and without TensorFlow.

    python benchmarks/gpu/export.py --out=steps
    python benchmarks/gpu/export.py --out=small --methods supervised --backbone=mobilenet_v2 \\
        --crop=65 --batch 2 --precision=float32 --checked_steps=3

Each is a whole step of the project's trainer: forward, backward, update. Nothing is computed, so
that a machine without a GPU writes the large ones in less than a minute each. A step is two files:
`<name>.mlirbc`, the program, and `<name>.json`, its parameters and results. Weights are parameters;
their values are not written, only the mean and deviation that each variable starts with. With
--checked_steps TensorFlow makes so many steps here, and `<name>.npz` holds the values before, the
losses, and the values after, for `run.py --check`.
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
# XLA's names of types.
_TYPES = {"bool": "pred", "float32": "f32", "int32": "s32", "int64": "s64"}


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


def _spread(value: np.ndarray) -> dict[str, float]:
    """Describes a variable's value well enough to time a step."""
    value = value.astype(np.float64)
    return {"mean": float(value.mean()), "stddev": float(value.std())}


def describe(step: Any, batch: Any) -> tuple[bytes, list[dict], list[dict], list[tf.Variable]]:
    """Compiles a step to StableHLO.

    Args:
      step: of `step_of`.
      batch: tensors by stream and name.

    Returns:
      The program; its parameters; its results; and the variables among the parameters, in their
      order. A result names a loss, or the parameter whose next value it is.

    Raises:
      ValueError: the step needs something that is neither in the batch nor a variable, or the
        program differs from what is known of the function.
    """
    specs = tf.nest.map_structure(tf.TensorSpec.from_tensor, batch)
    function = step.get_concrete_function(specs)
    variables = {id(v.handle): v for v in function.graph.variables}
    captured = [variables.get(id(tensor)) for tensor in function.captured_inputs]
    if None in captured:
        raise ValueError("the step takes a tensor from outside that is no variable")
    parameters = [
        {
            "name": name,
            "dtype": tensor.dtype.name,
            "shape": tensor.shape.as_list(),
            "low": float(tf.reduce_min(tf.cast(tensor, tf.float32))),
            "high": float(tf.reduce_max(tf.cast(tensor, tf.float32))),
        }
        for name, tensor in zip(_names(batch), tf.nest.flatten(batch))
    ]
    parameters += [
        {"name": v.name, "dtype": v.dtype.name, "shape": v.shape.as_list(), **_spread(v.numpy())}
        for v in captured
    ]
    compile_to = step.experimental_get_compiler_ir(specs)
    # Its first line alone tells which result takes the place of which parameter.
    header = compile_to(stage="hlo").split("\n", 1)[0]
    updates = re.findall(r"\{(\d+)\}: \((\d+), \{\}, (?:may|must)-alias\)", header)
    results = [{"loss": name} for name in sorted(function.structured_outputs)]
    results += [{"updates": int(parameter)} for _, parameter in sorted(updates, key=_number)]
    _check_layout(header, parameters, results)
    return compile_to(stage="stablehlo_serialized"), parameters, results, captured


def _number(update: tuple[str, str]) -> int:
    return int(update[0])


def _check_layout(header: str, parameters: list[dict], results: list[dict]) -> None:
    """Insists that a program has these parameters and results.

    Raises:
      ValueError: it has others.
    """
    inputs, outputs = re.search(r"entry_computation_layout=\{\((.*)\)->(.*)\}", header).groups()
    array = r"(pred|bf16|[fsu]\d+)\[([\d,]*)\]"

    def written(entry: dict) -> tuple[str, str]:
        if "loss" in entry:
            return "f32", ""
        entry = parameters[entry["updates"]] if "updates" in entry else entry
        return _TYPES[entry["dtype"]], ",".join(map(str, entry["shape"]))

    for what, layout, entries in (
        ("parameters", inputs, parameters),
        ("results", outputs, results),
    ):
        if re.findall(array, layout) != [written(entry) for entry in entries]:
            raise ValueError(f"the program's {what} are not those of the step")


def _compared(step: Any, batch: Any, variables: list[tf.Variable], steps: int) -> dict[str, Any]:
    """Makes steps; returns values of parameters before, losses of each step, and values after."""
    values = [tensor.numpy() for tensor in tf.nest.flatten(batch)]
    before = [*values, *(v.numpy() for v in variables)]
    losses = [tf.nest.flatten(step(batch)) for _ in range(steps)]
    return {
        **{f"before/{i}": value for i, value in enumerate(before)},
        **{f"after/{len(values) + i}": v.numpy() for i, v in enumerate(variables)},
        "losses": np.array([[float(loss) for loss in of_step] for of_step in losses]),
    }


def export(arguments: argparse.Namespace, method: str, batch_size: int) -> str:
    """Writes one step's files; returns a line about them."""
    arguments = argparse.Namespace(**{**vars(arguments), "batch": batch_size})
    trainer = make_trainer(arguments, Variant(method, method))
    batch = next(trainer.iterator)
    step = step_of(trainer)
    program, parameters, results, variables = describe(step, batch)
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
        values = _compared(step, batch, variables, arguments.checked_steps)
        np.savez(folder / f"{name}.npz", **values)
    return f"{name}: {len(program)} bytes, {len(parameters)} parameters, {len(results)} results"


def main() -> None:
    arguments = _arguments()
    for batch_size in arguments.batch:
        for method in arguments.methods:
            print(export(arguments, method, batch_size), flush=True)


if __name__ == "__main__":
    main()
