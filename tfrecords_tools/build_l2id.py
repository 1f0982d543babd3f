"""Makes TFRecords of L2ID: images of 200 classes whose image-level labels stand in one file.

python tfrecords_tools/build_l2id.py --l2id_dir=L2ID --splits_dir=lists --output_dir=records

--l2id_dir holds Data/<file>.JPEG and Annotations/cls_labels.npy, a dictionary of `files`, names
without extension, and `labels`, one row of 0 and 1 for each of them. Ids are those names.

* --splits_dir holds one <split>.txt per split with one id a line; without it, all files of
  cls_labels.npy are split `train`.
* --masks_dir holds <file>.png for images that have a mask, class k at column k - 1 of the labels;
  splits with masks need one for every image, and take labels that cls_labels.npy lacks from them.
* Class names are those of ImageNet's 200 detection classes in alphabetical order (--class_names:
  a text file, one a line). `person` stands where the published sampling has it; the others were
  not compared with the data, which were not at hand.

Source: SLRNet specification 2.
"""

import dataclasses
import os
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
from absl import flags

from tfrecords_tools import file_finder, program
from tfrecords_tools.class_files import read_class_names
from tfrecords_tools.encoder import Encoder, ImageSource
from tfrecords_tools.file_finder import FileFinder, find_all
from tfrecords_tools.id_lists import check_unlabelled, read_splits
from tfseg import files, unpickling
from tfseg.data.specs import DatasetSpec
from tfseg.errors import UserError

FLAGS = flags.FLAGS
LABELS_FILE = os.path.join("Annotations", "cls_labels.npy")
IMAGES_FOLDER = "Data"

CLASS_NAMES = tuple(
    name.strip()
    for name in (
        "accordion,airplane,ant,antelope,apple,armadillo,artichoke,axe,baby bed,backpack,bagel,"
        "balance beam,banana,band aid,banjo,baseball,basketball,bathing cap,beaker,bear,bee,"
        "bell pepper,bench,bicycle,binder,bird,bookshelf,bow tie,bow,bowl,brassiere,burrito,bus,"
        "butterfly,camel,can opener,car,cart,cattle,cello,centipede,chain saw,chair,chime,"
        "cocktail shaker,coffee maker,computer keyboard,computer mouse,corkscrew,cream,"
        "croquet ball,crutch,cucumber,cup or mug,diaper,digital clock,dishwasher,dog,domestic cat,"
        "dragonfly,drum,dumbbell,electric fan,elephant,face powder,fig,filing cabinet,flower pot,"
        "flute,fox,french horn,frog,frying pan,giant panda,goldfish,golf ball,golfcart,guacamole,"
        "guitar,hair dryer,hair spray,hamburger,hammer,hamster,harmonica,harp,"
        "hat with a wide brim,head cabbage,helmet,hippopotamus,horizontal bar,horse,hotdog,iPod,"
        "isopod,jellyfish,koala bear,ladle,ladybug,lamp,laptop,lemon,lion,lipstick,lizard,lobster,"
        "maillot,maraca,microphone,microwave,milk can,miniskirt,monkey,motorcycle,mushroom,nail,"
        "neck brace,oboe,orange,otter,pencil box,pencil sharpener,perfume,person,piano,pineapple,"
        "ping-pong ball,pitcher,pizza,plastic bag,plate rack,pomegranate,popsicle,porcupine,"
        "power drill,pretzel,printer,puck,punching bag,purse,rabbit,racket,ray,red panda,"
        "refrigerator,remote control,rubber eraser,rugby ball,ruler,salt or pepper shaker,"
        "saxophone,scorpion,screwdriver,seal,sheep,ski,skunk,snail,snake,snowmobile,snowplow,"
        "soap dispenser,soccer ball,sofa,spatula,squirrel,starfish,stethoscope,stove,strainer,"
        "strawberry,stretcher,sunglasses,swimming trunks,swine,syringe,table,tape player,"
        "tennis ball,tick,tie,tiger,toaster,traffic light,train,trombone,trumpet,turtle,"
        "tv or monitor,unicycle,vacuum,violin,volleyball,waffle iron,washer,water bottle,"
        "watercraft,whale,wine bottle,zebra"
    ).split(",")
)


def define_flags() -> None:
    """Defines the program's flags."""
    flags.DEFINE_string("l2id_dir", None, "Folder with Data and Annotations/cls_labels.npy.")
    flags.DEFINE_string(
        "splits_dir", None, "Folder of <split>.txt; without it, all files are split `train`."
    )
    flags.DEFINE_string("masks_dir", None, "Folder of masks; without it all splits have none.")
    flags.DEFINE_string(
        "class_names", None, "Text file, one name a line, of the labels' columns in order."
    )
    program.define_output_flags(num_shards=16)
    program.define_image_flags()


# The file of labels ------------------------------------------------------------------------------

_NUMPY_MODULES = tuple(
    f"numpy.{module}"
    for module in ("core.multiarray", "_core.multiarray", "core.numeric", "_core.numeric")
)
_PLAIN_TYPE = re.compile(r"[biufU]\d{1,4}|O8?")


class _Type:
    """Stands for a type of numbers or texts."""

    def __init__(self, name: Any, *_: Any):
        if not isinstance(name, str) or not _PLAIN_TYPE.fullmatch(name):
            raise ValueError("an array of an unknown type")
        self.dtype = np.dtype(name)

    def set_state(self, state: tuple) -> None:
        """Sets the byte order, the second entry."""
        if self.dtype.kind != "O" and state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for an array: numbers or texts by their bytes, or a list of objects."""

    def __init__(self, *_: Any):
        self.value: Any = None

    def set_state(self, state: tuple) -> None:
        """Sets the content: version, shape, type, whether columns come first, bytes or list."""
        _, shape, of, by_columns, content = state
        self.fill(content, of, shape, "F" if by_columns else "C")

    def fill(self, content: Any, of: Any, shape: Any, order: str) -> None:
        """Takes the content; it must have the length that the shape says."""
        dtype = of.dtype
        if dtype.kind == "O":
            self.value = content[0] if shape == () else list(content)
            return
        if isinstance(content, str):
            content = content.encode("latin1")
        self.value = np.frombuffer(content, dtype).reshape(shape, order=order)


def _from_buffer(content: Any, of: Any, shape: Any, order: str) -> _Array:
    array = _Array()
    array.fill(content, of, shape, order)
    return array


def _scalar(of: Any, content: Any) -> Any:
    return np.frombuffer(_encoded(content), of.dtype)[0]


def _encoded(text: Any, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise ValueError("a text of an unknown encoding")
    return text if isinstance(text, bytes) else text.encode("latin1")


# What a pickle of arrays, strings and numbers is made of.
_KNOWN = {
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): unpickling.Inert,
    ("_codecs", "encode"): _encoded,
    **{(module, "_reconstruct"): _Array for module in _NUMPY_MODULES},
    **{(module, "scalar"): _scalar for module in _NUMPY_MODULES},
    **{(module, "_frombuffer"): _from_buffer for module in _NUMPY_MODULES},
}


class _Unpickler(unpickling.Unpickler):
    """An unpickler of arrays, strings and numbers that executes nothing from the file."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise ValueError(f"it asks for {module}.{name}, which is no array, string or number")
        return _KNOWN[module, name]

    def set_state(self, target: Any, state: Any) -> None:
        target.set_state(state)


def _read_object(file: BinaryIO) -> Any:
    """Returns the one object of a .npy file."""
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"version {version} of the format")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if not dtype.hasobject or shape != ():
        raise ValueError(f"an array {dtype} {list(shape)}, not a dictionary")
    return _Unpickler(file, files.file_bytes(file)).load().value


def _content(value: Any) -> Any:
    """Returns an array's content; of anything else, itself."""
    return value.value if isinstance(value, _Array) else value


def _table(value: Any, max_bytes: int) -> np.ndarray:
    """Returns labels as an array: they may also be a list of rows, or an array of such.

    Raises:
      ValueError: they are no rows of numbers, or more of them than the file could hold: one row can
        be named many times.
    """
    rows = _content(value)
    if not isinstance(rows, np.ndarray):
        rows = [_content(row) for row in rows]
        if not all(isinstance(row, np.ndarray | list) for row in rows):
            raise ValueError("'labels' are no rows")
        if sum(map(len, rows)) * 8 > max_bytes:
            raise ValueError("'labels' are longer than the file")
        if any(isinstance(x, list | _Array) for row in rows for x in row):
            raise ValueError("'labels' are rows of lists")
    table = np.asarray(rows)
    if table.dtype.kind not in "biuf":
        raise ValueError("'labels' are no numbers")
    return table


@dataclasses.dataclass(frozen=True)
class Labels:
    """Image-level labels: class ids, from 1, by file; the number of classes."""

    ids: Mapping[str, tuple[int, ...]]
    num_classes: int


def read_labels(path: str) -> Labels:
    """Reads cls_labels.npy.

    Args:
      path: the file.

    Returns:
      The labels, in the order of the file.

    Raises:
      UserError: there is no such file, or it has another structure.
    """
    accepted = "{'files': [name, ...], 'labels': array [names, classes] of 0 and 1}"
    if not os.path.isfile(path):
        raise UserError(
            "The file of image-level labels is missing.",
            where=path,
            accepted=f"a file that holds {accepted}",
            fix="put L2ID's cls_labels.npy there; without it the images' classes are not known",
        )
    try:
        with files.open_regular(path) as file:
            content = _read_object(file)
            max_bytes = files.MEMORY_PER_FILE_BYTE * files.file_bytes(file) + files.MEMORY_BESIDES
        if not isinstance(content, Mapping) or not {"files", "labels"} <= set(content):
            raise ValueError(f"{type(content).__name__} without 'files' and 'labels'")
        names, labels = _content(content["files"]), _table(content["labels"], max_bytes)
        if not all(isinstance(name, str) for name in names):
            raise ValueError("'files' holds what is no text")
        names = [str(name) for name in names]
        if labels.ndim != 2 or len(labels) != len(names) or not labels.size:
            raise ValueError(f"{len(names)} files, labels of shape {list(labels.shape)}")
        if not np.isin(labels, (0, 1)).all():
            raise ValueError("labels that are neither 0 nor 1")
    except Exception as error:  # damaged pickles raise many kinds
        raise UserError(
            "The file of image-level labels cannot be read.",
            where=path,
            received=f"{type(error).__name__}: {error}"[:300],
            accepted=accepted,
        ) from None
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(
            "The file of image-level labels holds a file more than once.",
            where=path,
            received=f"{len(twice)} such files: {', '.join(twice[:5])}",
        )
    rows = (tuple((np.flatnonzero(row) + 1).tolist()) for row in labels)
    return Labels(dict(zip(names, rows)), labels.shape[1])


def make_spec(num_classes: int, names_file: str | None = None) -> DatasetSpec:
    """Returns the classes: background, then one for each column of the labels.

    Args:
      num_classes: columns of the labels.
      names_file: a text file of their names; None: `CLASS_NAMES`.

    Raises:
      UserError: another number of names, or one of them twice; more than a mask can hold.
    """
    names = CLASS_NAMES
    if names_file is not None:
        names = read_class_names(names_file, has_background=False)
    if len(names) != num_classes or len({*names, "background"}) != num_classes + 1:
        raise UserError(
            "The class names do not fit the labels.",
            where="--class_names" if names_file is None else names_file,
            received=f"{len(names)} names",
            accepted=f"{num_classes} different names, one for each column, without background",
            fix="give --class_names",
        )
    if num_classes > 254:
        raise UserError("A mask holds at most 254 classes.", received=f"{num_classes} classes")
    return DatasetSpec(name="l2id", class_names=("background", *names))


def make_sources(
    splits: Mapping[str, Sequence[str]],
    images: FileFinder,
    masks: FileFinder | None,
    labels: Labels,
    *,
    unlabelled_splits: Sequence[str] = (),
    allow_missing_masks: bool = False,
) -> dict[str, list[ImageSource]]:
    """Joins lists, images, masks and image-level labels.

    Raises:
      UserError: an image or a mask is missing, or what tells its classes.
    """
    check_unlabelled(unlabelled_splits, splits)
    tasks: dict[str, list[ImageSource]] = {}
    for split, ids in splits.items():
        image_paths = find_all(ids, images, split=split, what="image")
        mask_paths = file_finder.mask_paths(
            split,
            ids,
            masks,
            unlabelled=split in unlabelled_splits,
            allow_missing=allow_missing_masks,
        )
        unknown = [i for i, mask in zip(ids, mask_paths) if mask is None and i not in labels.ids]
        if unknown:
            raise UserError(
                f"{len(unknown)} of {len(ids)} ids of split '{split}' have neither image-level "
                "labels nor a mask.",
                where=LABELS_FILE,
                received=", ".join(unknown[:5]) + (" ..." if len(unknown) > 5 else ""),
                accepted=f"names as in that file, such as {next(iter(labels.ids))}",
                fix="correct the list, or give --masks_dir for splits with masks",
            )
        tasks[split] = [
            ImageSource(i, image, mask, image_labels=labels.ids.get(i), notes=_notes(i, labels))
            for i, image, mask in zip(ids, image_paths, mask_paths)
        ]
    return tasks


def _notes(i: str, labels: Labels) -> tuple[str, ...]:
    if labels.ids.get(i) == ():
        return ("image whose image-level labels name no class (SLRNet cannot learn from it)",)
    return ()


def main(argv: list[str]) -> None:
    started = time.monotonic()
    program.require("l2id_dir", "output_dir")
    for part in ("", IMAGES_FOLDER):
        program.check_folder(os.path.join(FLAGS.l2id_dir, part), "l2id_dir")
    if FLAGS.masks_dir:
        program.check_folder(FLAGS.masks_dir, "masks_dir")
    if FLAGS.splits and not FLAGS.splits_dir:
        raise UserError("--splits needs --splits_dir.", where="--splits")
    labels = read_labels(os.path.join(FLAGS.l2id_dir, LABELS_FILE))
    spec = make_spec(labels.num_classes, FLAGS.class_names)
    splits = {"train": list(labels.ids)}
    if FLAGS.splits_dir:
        splits = read_splits(FLAGS.splits_dir, FLAGS.splits)
    tasks = make_sources(
        splits,
        FileFinder(os.path.join(FLAGS.l2id_dir, IMAGES_FOLDER)),
        FileFinder(FLAGS.masks_dir) if FLAGS.masks_dir else None,
        labels,
        unlabelled_splits=FLAGS.unlabelled_splits,
        allow_missing_masks=FLAGS.allow_missing_masks,
    )
    program.write(
        spec,
        tasks,
        Encoder(
            spec,
            max_megapixels=FLAGS.max_image_megapixels,
            exif_orientation=FLAGS.exif_orientation,
        ),
        started=started,
    )


if __name__ == "__main__":
    define_flags()
    program.run(main)
