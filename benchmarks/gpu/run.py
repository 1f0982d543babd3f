"""Times training steps that `export.py` wrote. Needs JAX and NumPy, no TensorFlow.

    python run.py steps                      # every step of the folder, most wanted first
    python run.py small --check              # compares losses and variables with TensorFlow's

Every step is compiled for the first device, runs three times unmeasured and then --steps times in
each of three rounds. Its results take the place of its parameters, as in a training; one batch of
random values is used again and again. A line of JSON for each step goes to the screen and to --out
at once, so that a run that is cut off leaves what it has. Before a step that might not fit into
what is left of --budget_s, the run ends and names the steps that it left out.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time

import jax
import ml_dtypes  # noqa: F401  (NumPy's bfloat16; comes with JAX)
import numpy as np

# Counters are 64 bits wide.
jax.config.update("jax_enable_x64", True)

_WARM_UP, _ROUNDS = 3, 3
# Goals for an H200: units a second, by the beginning of a step's name.
GOALS = {"supervised_xception_65_513_": 450, "pseudoseg_xception_65_513_": 150}
# The goals' methods come first.
_ORDER = ("supervised", "pseudoseg", "unimatch")
# Largest differences that --check accepts after one step: of losses, relative; of all variables, by
# how far they moved. Two versions of XLA round differently, and an untrained network makes more of
# that in its gradient.
_LOSS, _CHANGE = 1e-5, 0.05


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="of export.py")
    parser.add_argument("--steps", type=int, default=20, help="in each of three rounds")
    parser.add_argument("--budget_s", type=float, default=540, help="seconds for everything")
    parser.add_argument("--out", help="file for the lines of JSON")
    parser.add_argument("--check", action="store_true", help="compare with TensorFlow, no timing")
    return parser.parse_args()


class Step:
    """A compiled training step with the values of its parameters.

    Args:
      path: its .json file.
      values: of the parameters, in their order; None: random ones like those it was written with.
    """

    def __init__(self, path: pathlib.Path, values: list[np.ndarray] | None = None):
        # The only way to compile a program that JAX did not write; the module is JAX's own.
        from jax._src.lib import xla_client

        self.manifest = json.loads(path.read_text(encoding="utf-8"))
        device = jax.devices()[0]
        started = time.perf_counter()
        self._program = device.client.compile_and_load(
            path.with_suffix(".mlirbc").read_bytes(),
            xla_client.DeviceList((device,)),
            xla_client.CompileOptions(),
        )
        self.compile_s = time.perf_counter() - started
        values = _random(self.manifest["parameters"]) if values is None else values
        self.values = [jax.device_put(value, device) for value in values]

    def __call__(self) -> list[jax.Array]:
        """Makes a step; returns its losses, which may not be there yet."""
        outputs = self._program.execute_sharded(self.values)
        losses = []
        for result, (value,) in zip(
            self.manifest["results"], outputs.disassemble_into_single_device_arrays()
        ):
            if "loss" in result:
                losses.append(value)
            else:
                self.values[result["updates"]] = value
        return losses

    def wait(self) -> None:
        """Returns when all steps are done."""
        jax.block_until_ready(self.values)

    def memory_gib(self) -> dict[str, float]:
        """Returns what the compiler planned, and the device's own peak where it tells one."""
        planned = self._program.get_compiled_memory_stats()
        found = {
            "parameters_gib": planned.argument_size_in_bytes / 2**30,
            "temporary_gib": planned.temp_size_in_bytes / 2**30,
        }
        # Of the process: of the largest step so far.
        told = jax.devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in told:
            found["peak_gib_so_far"] = told["peak_bytes_in_use"] / 2**30
        return {name: round(value, 2) for name, value in found.items()}


def _random(parameters: list[dict]) -> list[np.ndarray]:
    """Returns a batch and variables from what the manifest tells of them."""
    rng = np.random.default_rng(0)
    values = []
    for parameter in parameters:
        shape, dtype = parameter["shape"], np.dtype(parameter["dtype"])
        if "stddev" in parameter:
            value = rng.standard_normal(shape, np.float32) * parameter["stddev"]
            value += parameter["mean"]
        elif dtype.kind == "f":
            value = rng.uniform(parameter["low"], parameter["high"], shape)
        else:
            value = rng.integers(int(parameter["low"]), int(parameter["high"]) + 1, shape)
        values.append(np.asarray(value).astype(dtype))
    return values


def timed(path: pathlib.Path, steps: int) -> dict:
    """Returns the figures of one step."""
    step = Step(path)
    manifest = step.manifest
    first = [float(loss) for loss in step()]
    for _ in range(_WARM_UP - 1):
        step()
    step.wait()
    rounds = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        for _ in range(steps):
            losses = step()
        step.wait()
        rounds.append((time.perf_counter() - started) / steps)
    rate = manifest["batch"] / statistics.median(rounds)
    goals = [goal for name, goal in GOALS.items() if manifest["step"].startswith(name)]
    return {
        "step": manifest["step"],
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "compile_s": round(step.compile_s, 1),
        "step_s": [round(seconds, 4) for seconds in rounds],
        f"{manifest['unit']}_per_s": round(rate, 1),
        **({"goal": goals[0]} if goals else {}),
        **step.memory_gib(),
        "losses": {"first": first, "last": [float(loss) for loss in losses]},
    }


def checked(path: pathlib.Path) -> tuple[dict, bool]:
    """Compares steps with TensorFlow's; returns the figures, and whether they agree.

    The distance between the variables of both is divided by how far TensorFlow moved them.
    """
    with np.load(path.with_suffix(".npz")) as stored:
        kept = dict(stored)
    count = len(json.loads(path.read_text(encoding="utf-8"))["parameters"])
    step = Step(path, [kept[f"before/{i}"] for i in range(count)])
    losses = np.array([[float(loss) for loss in step()] for _ in kept["losses"]])
    loss = float(np.max(np.abs(losses / kept["losses"] - 1)))
    moved, apart = 0.0, 0.0
    for i, value in enumerate(step.values):
        if f"after/{i}" not in kept:
            continue
        after, before = (kept[f"{when}/{i}"].astype(np.float64) for when in ("after", "before"))
        moved += float(np.sum((after - before) ** 2))
        apart += float(np.sum((np.asarray(value).astype(np.float64) - after) ** 2))
    change = (apart / moved) ** 0.5
    figures = {
        "step": step.manifest["step"],
        "jax": jax.__version__,
        "losses": losses.tolist(),
        "tensorflow": kept["losses"].tolist(),
        "largest_difference_of_losses": loss,
        "difference_of_variables_by_their_change": change,
    }
    return figures, loss <= _LOSS and change <= _CHANGE


def _wanted_first(path: pathlib.Path) -> tuple:
    manifest = json.loads(path.read_text(encoding="utf-8"))
    method = manifest["step"].split("_")[0]
    return _ORDER.index(method) if method in _ORDER else len(_ORDER), manifest["batch"]


def main() -> None:
    started = time.perf_counter()
    arguments = _arguments()
    paths = sorted(pathlib.Path(arguments.folder).glob("*.json"), key=_wanted_first)
    longest, all_agree = 0.0, True
    for i, path in enumerate(paths):
        left = arguments.budget_s - (time.perf_counter() - started)
        # Later steps are larger.
        if 1.5 * longest > left:
            print(f"left out, {left:.0f} s left: {', '.join(p.stem for p in paths[i:])}")
            break
        before = time.perf_counter()
        if arguments.check:
            figures, agrees = checked(path)
            all_agree &= agrees
        else:
            figures = timed(path, arguments.steps)
        longest = max(longest, time.perf_counter() - before)
        line = json.dumps(figures)
        print(line, flush=True)
        if arguments.out:
            with open(arguments.out, "a", encoding="utf-8") as file:
                file.write(line + "\n")
    sys.exit(0 if all_agree else 1)


if __name__ == "__main__":
    main()
