"""What stands before a network's names in the file of a larger one."""

from collections.abc import Collection


def outer_prefix(names: Collection[str], wanted: Collection[str], *, joint: str) -> str:
    """Returns what stands before the names of a network's tensors in a file.

    Wrappers and larger networks put `module.`, `backbone.` or both before them.

    Args:
      names: of the file's tensors.
      wanted: the network's own; its first is looked for.
      joint: between the parts of a name.
    """
    first = next(iter(wanted), "")
    found = {n.removesuffix(first) for n in names if n == first or n.endswith(joint + first)}
    ranks = {prefix: sum(prefix + name in names for name in wanted) for prefix in found}
    return max(sorted(ranks, key=len), key=ranks.__getitem__, default="")
