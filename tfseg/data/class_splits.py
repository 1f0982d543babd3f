"""Which classes have pixel labels: seen, unseen and validation classes of a zero-label run.

Class ids stay those of the data set; nothing is re-ordered. What a split does to labels is a table
of 256 entries, applied after augmentation (`tfseg.data.pipeline`), so no id of an unseen class can
reach a training target: the table holds none.

Source: STRICT specification 1.6, 2 and 2.1; ZS3 specification 2.3.
"""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfseg import files, shipped
from tfseg.data import class_names
from tfseg.errors import UserError

# In a training table: no pixel label, but a candidate for a pseudo label. Void is not.
UNLABELLED = 254
_FLAG = "--class_split"


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

    Raises:
      UserError: a class stands twice, or `validation` or `background` is not in `seen`.
    """

    name: str
    seen: tuple[int, ...]
    unseen: tuple[int, ...]
    validation: tuple[int, ...] = ()
    background: int | None = None
    held_out: tuple[int, ...] = ()

    def __post_init__(self):
        counts = Counter((*self.seen, *self.unseen, *self.held_out))
        twice = sorted(c for c, count in counts.items() if count > 1)
        if twice:
            raise UserError(
                "A class stands twice in the class split.",
                where=_FLAG,
                received=f"class ids {', '.join(map(str, twice))}",
                accepted="each class once: seen, unseen or held out",
            )
        background = () if self.background is None else (self.background,)
        strange = {*self.validation, *background} - set(self.seen)
        if strange:
            raise UserError(
                "Validation classes and the background must be seen classes.",
                where=_FLAG,
                received=f"class ids {', '.join(map(str, sorted(strange)))}",
            )

    @property
    def visible(self) -> tuple[int, ...]:
        """Seen and unseen classes in ascending order: those that a network may answer."""
        return tuple(sorted(self.seen + self.unseen))

    def without_validation(self) -> "ClassSplit":
        """Returns the split for choosing settings: validation classes are the unseen ones.

        The true unseen classes are held out: they are what they are in training, and nobody may
        answer them.

        Raises:
          UserError: there are no validation classes.
        """
        if not self.validation:
            raise UserError(
                "The class split has no validation classes.",
                where=f"{_FLAG}={self.name}, --exclude_validation_classes",
                accepted="a split with validation classes, such as spnet_voc12 or a FILE with a "
                "list 'validation'",
            )
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
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "ClassSplit":
        """Builds a split from `to_json`'s result, as `runs.record.read` found it in config.json."""
        fields = {field.name for field in dataclasses.fields(cls)}
        lists = {
            k: tuple(v) if isinstance(v, list) else v for k, v in content.items() if k in fields
        }
        return cls(**lists)


# Published splits ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Preset:
    """A published split by names: every class that it does not name is seen.

    Attributes:
      num_classes: of the data set for which it was published.
      unseen, validation: names.
      background: the background is a seen class.
    """

    num_classes: int
    unseen: tuple[str, ...]
    validation: tuple[str, ...] = ()
    background: bool = True


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


_VOC_CLASSES, _CONTEXT_CLASSES, _COCO_STUFF_CLASSES = 21, 60, 182
# Nested: the first K are the unseen classes of the split with K.
_ZS3_VOC = _names("cow,motorbike,aeroplane,sofa,cat,tvmonitor,train,bottle,chair,pottedplant")
_ZS3_CONTEXT = _names("cow,motorbike,sofa,cat,boat,fence,bird,tvmonitor,aeroplane,keyboard")

PRESETS: dict[str, _Preset] = {
    "spnet_voc12": _Preset(
        _VOC_CLASSES,
        _names("pottedplant,sheep,sofa,train,tvmonitor"),
        _names("horse,motorbike,person"),
        background=False,
    ),
    "spnet_cocostuff": _Preset(
        _COCO_STUFF_CLASSES,
        _names(
            "cow,giraffe,suitcase,frisbee,skateboard,carrot,scissors,cardboard,clouds,grass,"
            "playingfield,river,road,tree,wall-concrete"
        ),
        _names(
            "motorcycle,elephant,baseball bat,wine glass,banana,chair,keyboard,refrigerator,"
            "branch,light,napkin,pavement"
        ),
        background=False,
    ),
    **{f"zs3_voc_{k}": _Preset(_VOC_CLASSES, _ZS3_VOC[:k]) for k in (2, 4, 6, 8, 10)},
    **{f"zs3_context_{k}": _Preset(_CONTEXT_CLASSES, _ZS3_CONTEXT[:k]) for k in (2, 4, 6, 8, 10)},
}


# Loading ------------------------------------------------------------------------------------------

_LISTS = ("seen", "unseen", "validation")


def load(text: str, spec: Any, *, seen_background: bool = False) -> ClassSplit:
    """Makes the split that --class_split asks for.

    Args:
      text: name of one of `PRESETS`, or a JSON file `{"seen": [names], "unseen": [names],
        "validation": [names], "background": name or null}`. Validation classes are seen ones and
        need not be repeated in "seen"; nor does the background.
      spec: the data set (`DatasetSpec`): class names, ignore label, whether class 0 is background.
      seen_background: the background is a seen class, whatever the split says.

    Raises:
      UserError: no such preset or file; the data set is another one than the preset's or cannot
        have a split; a class is unknown, stands in two lists or in none; a background that is not
        class 0.
    """
    _check_spec(spec, text)
    if text in PRESETS:
        seen, unseen, validation, background = _of_preset(text, spec)
    else:
        seen, unseen, validation, background = _of_file(text, spec)
    where = f"{_FLAG}={text}"
    if seen_background:
        _check_background(0, spec, "--seen_background")
        background = 0
    if background is not None:
        seen = {*seen, background}
    elif spec.has_background and 0 in seen:
        raise UserError(
            "The background is among the seen classes, but the split says that it takes no part: "
            "the unlabelled pixels would tell where the unseen classes are.",
            where=where,
            received=f'\'{spec.class_names[0]}\' in "seen", "background": null',
            fix=f'set "background": "{spec.class_names[0]}", or take it out of "seen"',
        )
    _check_lists(seen | validation, unseen, background, spec, where)
    return ClassSplit(
        name=text,
        seen=tuple(sorted(seen | validation)),
        unseen=tuple(sorted(unseen)),
        validation=tuple(sorted(validation)),
        background=background,
    )


def _check_spec(spec: Any, text: str) -> None:
    """Insists on a data set whose labels have room for `UNLABELLED`.

    Raises:
      UserError: it has too many classes, or its ignore label is a class or that value.
    """
    ignore = spec.ignore_label
    if spec.num_classes > UNLABELLED or ignore == UNLABELLED or ignore < spec.num_classes:
        raise UserError(
            f"Data set {spec.name} cannot have a class split.",
            where=f"{_FLAG}={text}",
            received=f"{spec.num_classes} classes, ignore label {ignore}",
            accepted=f"at most {UNLABELLED} classes and an ignore label that is none of them, "
            f"nor {UNLABELLED}",
            fix="make the records with ignore label 255",
        )


def _of_preset(text: str, spec: Any) -> tuple[set[int], set[int], set[int], int | None]:
    preset, where = PRESETS[text], f"{_FLAG}={text}"
    if spec.num_classes != preset.num_classes:
        raise UserError(
            f"Class split {text} belongs to another data set.",
            where=where,
            received=f"{spec.name} with {spec.num_classes} classes",
            accepted=f"the data set of {preset.num_classes} classes for which it was published",
            fix="describe the classes of these records in a FILE",
        )
    what = f"data set {spec.name}"
    unseen = set(class_names.find(spec.class_names, preset.unseen, what=what, where=where))
    validation = set(class_names.find(spec.class_names, preset.validation, what=what, where=where))
    background = 0 if preset.background else None
    if preset.background:
        _check_background(0, spec, where)
    seen = set(range(int(spec.has_background), spec.num_classes)) - unseen - validation
    return seen, unseen, validation, background


def _of_file(path: str, spec: Any) -> tuple[set[int], set[int], set[int], int | None]:
    content = _read(path)
    what = f"data set {spec.name}"
    where = f"{_FLAG}={path}"
    ids = {}
    for key in _LISTS:
        found = class_names.find(spec.class_names, content[key], what=what, where=where)
        twice = sorted({c for c in found if found.count(c) > 1})
        if twice:
            raise UserError(
                f'"{key}" of the class split names a class twice.',
                where=where,
                received=", ".join(spec.class_names[c] for c in twice),
            )
        ids[key] = set(found)
    background = None
    if content["background"] is not None:
        found = class_names.find(spec.class_names, [content["background"]], what=what, where=where)
        background = found[0]
        _check_background(background, spec, where)
    return ids["seen"], ids["unseen"], ids["validation"], background


def _read(path: str) -> dict[str, Any]:
    """Reads a split's file; lists and the background that it leaves out are empty and None.

    A path at which there is no file may be the name of one that comes with the package.

    Raises:
      UserError: no such file, no JSON, or another structure.
    """
    where = f"{_FLAG}={path}"
    accepted = (
        '{"seen": [names], "unseen": [names], "validation": [names], "background": name or null}'
    )
    if not os.path.exists(path):
        path = shipped.find(path, ".json") or path
    try:
        content = files.read_json(path, what="The class split", where=where, accepted=accepted)
    except FileNotFoundError:
        raise UserError(
            "There is no such class split.",
            where=where,
            received=path,
            accepted=f"{', '.join(PRESETS)}, or a JSON file",
        ) from None
    if not isinstance(content, dict) or set(content) - {*_LISTS, "background"}:
        keys = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise UserError(
            "The class split has another structure.", where=where, received=keys, accepted=accepted
        )
    content = {"background": None, **dict.fromkeys(_LISTS, ()), **content}
    for key in _LISTS:
        if not _are_names(content[key]):
            raise UserError(
                f'"{key}" of the class split must be a list of names.',
                where=where,
                received=content[key],
                accepted=accepted,
            )
    if content["background"] is not None and not _are_names([content["background"]]):
        raise UserError(
            '"background" of the class split must be a name or null.',
            where=where,
            received=content["background"],
            accepted=accepted,
        )
    return content


def _are_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(x, str) and x for x in value)


def _check_background(class_id: int, spec: Any, where: str) -> None:
    """Insists that a class is the background of a data set which has one.

    Raises:
      UserError: it is an ordinary class.
    """
    if spec.has_background and class_id == 0:
        return
    accepted = (
        f"'{spec.class_names[0]}', class 0"
        if spec.has_background
        else "no background: every class of this data set is a thing or stuff"
    )
    raise UserError(
        f"Data set {spec.name} has no such background: class {class_id} is "
        f"'{spec.class_names[class_id]}'.",
        where=where,
        received=spec.class_names[class_id],
        accepted=accepted,
        fix='leave out --seen_background, and set "background": null in a FILE'
        if not spec.has_background
        else f'set "background": "{spec.class_names[0]}" or null',
    )


def _check_lists(
    seen: set[int], unseen: set[int], background: int | None, spec: Any, where: str
) -> None:
    """Insists that each class is seen or unseen; only the background may be neither.

    Raises:
      UserError: one is both or neither, or there are no seen or no unseen classes.
    """

    def named(ids: Sequence[int]) -> str:
        names = [spec.class_names[c] for c in sorted(ids)]
        return ", ".join(names[:8]) + (" ..." if len(names) > 8 else "")

    if seen & unseen:
        raise UserError(
            "A class is both seen and unseen (validation classes and the background are seen).",
            where=where,
            received=named(seen & unseen),
            accepted="each class in one of the two lists",
            fix="take it out of one of them",
        )
    if spec.has_background and 0 in unseen:
        raise UserError(
            "The background cannot be an unseen class.", where=where, received=spec.class_names[0]
        )
    missing = set(range(int(spec.has_background), spec.num_classes)) - seen - unseen
    if missing:
        raise UserError(
            "The class split leaves out classes of the data set.",
            where=where,
            received=named(missing),
            accepted="every class seen or unseen; only the background may be neither",
            fix="add them to one of the lists",
        )
    for kind, ids in (("seen", seen - {background}), ("unseen", unseen)):
        if not ids:
            raise UserError(f"The class split has no {kind} classes.", where=where)
