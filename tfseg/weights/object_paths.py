"""Checkpoints of objects, as `tf.train.Checkpoint` writes them: Model Garden's.

A key is the path of attributes and layers to a variable. The variables of the backbones of
`models.backbones.model_garden` are called by that path below the backbone, so that only what stands
before it has to be found: `backbone/`, `model/backbone/`, or nothing.
"""

import re
from collections.abc import Collection, Iterable

from tfseg.weights.checkpoint.names import VALUE_SUFFIX
from tfseg.weights.prefix import outer_prefix

# What training keeps beside the model; the last is what an optimiser remembers of a variable.
_NOT_MODEL = re.compile(r"^(optimizer|global_step|save_counter)(/|$)|/\.OPTIMIZER_SLOT/")


def keys_by_name(keys: Iterable[str], *, scope: str, wanted: Collection[str]) -> dict[str, str]:
    """Names the variables of a checkpoint as those of a backbone are.

    Args:
      keys: of the checkpoint.
      scope: first component of the names of the backbone's variables.
      wanted: these names.

    Returns:
      The keys of the model's variables by name: `<scope>/<path below the backbone>`, or the whole
      path for what is elsewhere. Empty for a checkpoint of another kind.
    """
    paths = {key.removesuffix(VALUE_SUFFIX): key for key in keys if key.endswith(VALUE_SUFFIX)}
    paths = {path: key for path, key in paths.items() if not _NOT_MODEL.search(path)}
    inner = [name.removeprefix(scope + "/") for name in wanted]
    start = outer_prefix(paths, inner, joint="/")
    known = {start + path for path in inner}
    return {
        f"{scope}/{path.removeprefix(start)}" if path in known else path: key
        for path, key in paths.items()
    }
