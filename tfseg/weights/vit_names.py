"""Tensors of vision transformers under the names of the published DINOv2 files.

The same weights are handed on in several spellings: DINOv2's own, in which UniMatch V2 keeps them
too; Hugging Face's, on disk and in memory; and timm's.

Source: UniMatch specification 5.1.
"""

import re
from collections.abc import Mapping

import numpy as np

from tfseg.models.backbones.vit import SHAPES

# Hugging Face's names of what is no block, and theirs that begin with a module's name.
_WHOLE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.register_tokens": "register_tokens",
}
_MODULES = {
    "embeddings.patch_embeddings.projection.": "patch_embed.proj.",
    "layernorm.": "norm.",
}
_BLOCK = re.compile(r"encoder\.layer\.(\d+)\.(.+)")
_QUERY_KEY_VALUE = re.compile(r"attention\.(?:attention\.)?(query|key|value|[qkv]_proj)\.(\w+)")
_IN_BLOCK = (
    (re.compile(r"attention\.(?:output\.dense|o_proj)\.(\w+)"), r"attn.proj.\1"),
    (re.compile(r"layer_scale([12])\.lambda1"), r"ls\1.gamma"),
)
_HF_PROBE = "embeddings.position_embeddings"
# timm's name of the register tokens; it adds the class token's position to that token.
_TIMM_REGISTERS = "reg_token"


def original(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the tensors of a file under DINOv2's own names, wherever it has others for them.

    Args:
      arrays: tensors by name; something may stand before all names.

    Returns:
      Query, key and value are one tensor; a position embedding that lacks the class token's place
      has zeros there. Tensors of other names are as they were.
    """
    prefixes = [n.removesuffix(_HF_PROBE) for n in arrays if n.endswith(_HF_PROBE)]
    if prefixes:
        return _from_hugging_face(arrays, min(prefixes, key=len))
    prefixes = [n.removesuffix(_TIMM_REGISTERS) for n in arrays if n.endswith(_TIMM_REGISTERS)]
    return _from_timm(arrays, min(prefixes, key=len)) if prefixes else dict(arrays)


def _from_hugging_face(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    result: dict[str, np.ndarray] = {}
    parts: dict[str, dict[str, np.ndarray]] = {}
    sources: dict[str, list[str]] = {}
    for name, array in arrays.items():
        inner = name.removeprefix(prefix) if name.startswith(prefix) else name
        block = _BLOCK.fullmatch(inner)
        qkv = _QUERY_KEY_VALUE.fullmatch(block[2]) if block else None
        if qkv:
            joined = f"{prefix}blocks.{block[1]}.attn.qkv.{qkv[2]}"
            parts.setdefault(joined, {})[qkv[1][0]] = array
            sources.setdefault(joined, []).append(name)
        else:
            result[_renamed(name, prefix, inner, block)] = array
    for name, thirds in parts.items():
        if set(thirds) == set("qkv") and _may_be_joined(list(thirds.values())):
            result[name] = np.concatenate([thirds[letter] for letter in "qkv"])
        else:
            result |= {source: arrays[source] for source in sources[name]}
    return result


def _renamed(name: str, prefix: str, inner: str, block: re.Match | None) -> str:
    """Returns the name of a tensor other than query, key and value."""
    if block:
        rest = block[2]
        for pattern, replacement in _IN_BLOCK:
            rest = pattern.sub(replacement, rest) if pattern.fullmatch(rest) else rest
        return f"{prefix}blocks.{block[1]}.{rest}"
    if inner in _WHOLE:
        return prefix + _WHOLE[inner]
    for theirs, ours in _MODULES.items():
        if inner.startswith(theirs):
            return prefix + ours + inner.removeprefix(theirs)
    return name


def _may_be_joined(arrays: list[np.ndarray]) -> bool:
    """Whether arrays fit together, and are as large in memory as they say."""
    return len({array.shape[1:] for array in arrays}) == 1 and all(
        array.ndim > 0 and _is_whole(array) for array in arrays
    )


def _is_whole(array: np.ndarray) -> bool:
    """Whether no axis is one value that is repeated."""
    return all(stride or side <= 1 for stride, side in zip(array.strides, array.shape))


def _from_timm(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    result = dict(arrays)
    result[prefix + "register_tokens"] = result.pop(prefix + _TIMM_REGISTERS)
    name = prefix + "pos_embed"
    embedding = result.get(name)
    if embedding is not None and embedding.ndim == 3 and _is_whole(embedding):
        if round(embedding.shape[1] ** 0.5) ** 2 == embedding.shape[1]:
            result[name] = np.pad(embedding, [(0, 0), (1, 0), (0, 0)])
    return result


def variant_of(tensors: Mapping[str, np.ndarray]) -> str | None:
    """Names the vision transformer whose tensors these are, if it is one of ours.

    Args:
      tensors: under DINOv2's own names; something may stand before all of them.
    """

    def ending(name):
        return [n for n in tensors if n == name or n.endswith("." + name)]

    embeddings = ending("pos_embed")
    if not embeddings or tensors[embeddings[0]].ndim != 3:
        return None
    width = tensors[embeddings[0]].shape[2]
    for variant, shape in SHAPES.items():
        last = shape.taken[-1]
        has_blocks = ending(f"blocks.{last}.ls1.gamma") and not ending(
            f"blocks.{last + 1}.ls1.gamma"
        )
        registers = bool(ending("register_tokens")) == bool(shape.registers)
        if width == shape.width and has_blocks and registers:
            return variant
    return None
