"""Images that stand in two splits, by id or by picture."""

import itertools
import re
from collections.abc import Sequence

from tfrecords_tools.checks.split import Problem, SplitResult


def role_of(split: str) -> str:
    """Returns 'val', 'test', 'both' (trainval, which holds val by definition) or 'train'."""
    words = set(re.split(r"[\W_\d]+", split.lower()))
    if any(w.startswith("trainval") for w in words):
        return "both"
    if words & {"test", "testdev"}:
        return "test"
    if words & {"val", "valid", "validation", "dev", "eval", "minival"}:
        return "val"
    return "train"


def leaks(a: str, b: str) -> bool:
    """Says whether two splits, by their names, may share no image."""
    roles = {role_of(a), role_of(b)}
    return len(roles) > 1 and "both" not in roles


def find_leaks(results: Sequence[SplitResult]) -> tuple[list[Problem], list[str]]:
    """Compares the ids and the pictures of every two splits.

    Returns:
      (problems: what a validation or test split shares with a split of another role; remarks on
      every other overlap, such as train within train_aug).
    """
    problems, remarks = [], []
    for a, b in itertools.combinations(results, 2):
        leak = leaks(a.split, b.split)
        shared = sorted(set(a.ids) & set(b.ids))
        pictures = sorted(set(a.pictures) & set(b.pictures), key=lambda p: a.pictures[p])
        renamed = [p for p in pictures if a.pictures[p] != b.pictures[p]]
        both = f"{a.split}, {b.split}"
        if shared and leak:
            problems.append(
                Problem(
                    both,
                    "ids in two splits (leakage)",
                    f"{both}: {len(shared)} ids: {', '.join(shared[:5])}",
                )
            )
        elif shared:
            small, big = sorted((a, b), key=lambda r: len(r.ids))
            how = "all" if len(shared) == len(small.ids) else f"{len(shared)}"
            remarks.append(f"{how} of the {len(small.ids)} ids of {small.split} are in {big.split}")
        if renamed and leak:
            listed = ", ".join(f"{a.pictures[p]} = {b.pictures[p]}" for p in renamed[:5])
            problems.append(
                Problem(
                    both,
                    "the same picture in two splits (leakage)",
                    f"{both}: {len(renamed)} pictures under different ids: {listed}",
                )
            )
    return problems, remarks
