"""Formats that know convolutions in float32 alone."""

from typing import Any

from tfseg.errors import UserError


def require_float32(network: Any, file_format: str) -> None:
    """Insists on a network that computes in float32.

    Args:
      network: of `build_model`.
      file_format: value of --format.

    Raises:
      UserError: it computes in fewer bits.
    """
    precision = network.config.mixed_precision
    if precision != "float32":
        raise UserError(
            f"Runtimes of this format have no convolutions in {precision}.",
            where=f"--format={file_format}",
            received=f"a run with --mixed_precision={precision}",
            accepted="--format=savedmodel, or a run in float32",
            fix="set mixed_precision to float32 in the config.json of a copy of the run: its "
            "weights are float32 already",
        )
