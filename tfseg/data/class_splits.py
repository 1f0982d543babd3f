"""Which classes have pixel labels: seen, unseen and validation classes of a zero-label run.

Class ids stay those of the data set; nothing is re-ordered. What a split does to labels is a table
of 256 entries, applied after augmentation (`tfseg.data.pipeline`), so no id of an unseen class can
reach a training target: the table holds none.
"""

import dataclasses
from typing import Any

import numpy as np

# In a training table: no pixel label, but a candidate for a pseudo label. Void is not.
UNLABELLED = 254


@dataclasses.dataclass(frozen=True)
class ClassSplit:
    """Seen and unseen classes, as class ids of a data set.

    Args:
      name: preset or file.
      seen: classes with pixel labels, the background included where it is one of them.
      unseen: classes without.
      validation: those of `seen` that may stand in for unseen classes while settings are chosen.
      background: id of the background where it is a seen class: pixels of unseen classes then are
        background in the training labels. None: background takes no part; they are unlabelled.
      held_out: classes that are neither: the true unseen ones while validation classes stand in.
    """

    name: str
    seen: tuple[int, ...]
    unseen: tuple[int, ...]
    validation: tuple[int, ...] = ()
    background: int | None = None
    held_out: tuple[int, ...] = ()

    @property
    def visible(self) -> tuple[int, ...]:
        """Seen and unseen classes in ascending order: those that a network may answer."""
        return tuple(sorted(self.seen + self.unseen))

    def without_validation(self) -> "ClassSplit":
        """Returns the split for choosing settings: validation classes are the unseen ones."""
        return dataclasses.replace(
            self,
            name=f"{self.name}, validation classes unseen",
            seen=tuple(c for c in self.seen if c not in self.validation),
            unseen=self.validation,
            validation=(),
            held_out=self.held_out + self.unseen,
        )

    def training_table(self, num_classes: int, ignore_label: int) -> np.ndarray:
        """Returns what every label value becomes in training, uint8 [256].

        Seen classes stay; the ignore label and ids that are no class become the ignore label; every
        other class becomes background where that is a seen class, else `UNLABELLED`.
        """
        other = UNLABELLED if self.background is None else self.background
        return self._table(num_classes, ignore_label, kept=self.seen, other=other)

    def evaluation_table(self, num_classes: int, ignore_label: int) -> np.ndarray:
        """Returns what every label value becomes in evaluation, uint8 [256].

        Seen and unseen classes stay; held-out ones are what they are in training, so that a choice
        of settings never learns where they are; what takes no part becomes the ignore label.
        """
        table = self._table(num_classes, ignore_label, kept=self.visible, other=ignore_label)
        if self.background is not None:
            table[list(self.held_out)] = self.background
        return table

    @staticmethod
    def _table(num_classes: int, ignore_label: int, *, kept, other: int) -> np.ndarray:
        table = np.full(256, ignore_label, np.uint8)
        table[:num_classes] = other
        table[list(kept)] = kept
        table[ignore_label] = ignore_label
        return table

    def to_json(self) -> dict[str, Any]:
        """Returns the split as JSON's own types."""
        return dataclasses.asdict(self)
