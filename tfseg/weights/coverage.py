"""What initial weights did to a network.

It is always told: a name that silently fails to match costs a run.
"""

import dataclasses
from collections.abc import Iterable

_SHOWN = 6


@dataclasses.dataclass(frozen=True)
class Coverage:
    """What initial weights did to a network. `str()` gives the report.

    Attributes:
      source: where the weights came from.
      matched: variables that took their value.
      missing: variables of the network that the source lacks; they keep their random values.
      excluded: variables left out on purpose (last layers).
      excluded_shapes: those of `excluded` that would not have fitted anyway.
      unused: model variables of the source that the network lacks.
      not_model: number of other things in the source (optimiser slots, step).
    """

    source: str
    matched: tuple[str, ...]
    missing: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    excluded_shapes: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    not_model: int = 0

    def __str__(self) -> str:
        total = len(self.matched) + len(self.missing) + len(self.excluded)
        lines = [f"initial weights: {len(self.matched)} of {total} variables from {self.source}"]
        for what, names in (
            ("new layers, not in the checkpoint", self.missing),
            ("left out on purpose (last layers)", self.excluded),
            ("of those, of another shape", self.excluded_shapes),
            ("in the checkpoint, not in this network", self.unused),
        ):
            if names:
                lines.append(f"  {len(names)} {what}: {listed(names)}")
        if self.not_model:
            lines.append(
                f"  {self.not_model} entries that are not model variables (step, slots, counters)"
            )
        return "\n".join(lines)


def listed(names: Iterable[str]) -> str:
    """Returns the first of some names in order, and how many more there are."""
    names = sorted(names)
    more = f", ... ({len(names) - _SHOWN} more)" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
