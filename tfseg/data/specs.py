"""What a data set is: class names, ignore label, colours.

Converters write a `dataset.json` beside the shards, so a folder of records describes itself; the
DATASETS dict serves published records, which carry none.
"""

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfseg import files, storage
from tfseg.data import colormap
from tfseg.data.class_embeddings import ClassVectors
from tfseg.data.class_names import is_background
from tfseg.data.class_splits import ClassSplit
from tfseg.errors import UserError

# The second split of records whose lists the converter has drawn.
UNLABELLED_SPLIT = "unlabelled"
DATASET_FILE = "dataset.json"
# A mask has one byte for a pixel.
_MAX_CLASSES = 256
_BYTE = range(_MAX_CLASSES)
_NATURAL = range(1 << 63)
# Forms of `files.check_form`: a data set's description, and a split's entry in dataset.json.
SPEC_FORM = {
    "name": str,
    "class_names": [str],
    "ignore_label": _BYTE,
    "has_background": bool,
    "palette?": ([[_BYTE]], None),
    "eval_ids?": ([_BYTE], None),
}
_ENTRY_FORM = {
    "count?": _NATURAL,
    "num_pseudo_labels?": _NATURAL,
    "pixels?": {str: _NATURAL},
    "shards": [{"file": str, "bytes": _NATURAL, "records?": _NATURAL, "sha256?": str}],
}
_FIX = "make the records again with one of tfrecords_tools, or mend the file"


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """The classes of a data set.

    Args:
      name: of the data set.
      class_names: index = class id.
      ignore_label: id of pixels that count nowhere.
      has_background: class 0 is background, which is no image-level class.
      palette: RGB per class id; None: see `colormap_name`.
      eval_ids: id in which predictions are handed in, by class id (Cityscapes), or None.
      seen_unseen: seen and unseen classes of a zero-label run, or None.
      vectors: word vectors of the classes, or None.
    """

    name: str
    class_names: tuple[str, ...]
    ignore_label: int = 255
    has_background: bool = True
    palette: tuple[tuple[int, int, int], ...] | None = None
    eval_ids: tuple[int, ...] | None = None
    seen_unseen: ClassSplit | None = dataclasses.field(default=None, compare=False)
    vectors: ClassVectors | None = dataclasses.field(default=None, compare=False)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def num_image_classes(self) -> int:
        """Classes that an image-level label may name: all but background."""
        return self.num_classes - self.has_background

    @property
    def first_image_class(self) -> int:
        """Class id of the first image-level class; multi-hot column = id minus this."""
        return int(self.has_background)

    @property
    def class_0_is_blank(self) -> bool:
        """Whether class 0 is nothing to show: its name is background, or it counts nowhere."""
        return self.ignore_label == 0 or is_background(self.class_names[0])

    @property
    def colormap_name(self) -> str | None:
        """Name of the colour map of a data set without a palette: 'pascal' or 'distinct'."""
        if self.palette is not None:
            return None
        return "pascal" if self.class_names == _VOC else "distinct"

    def colors(self) -> np.ndarray:
        """Returns the colour of every id, [at least 256, 3] uint8: of the palette or of a map."""
        palette = self.palette or ()
        if self.colormap_name == "distinct":
            palette = colormap.as_palette(self.distinct_colors())
        colors = colormap.table(palette, max(256, self.num_classes))
        if self.ignore_label >= max(self.num_classes, len(palette)):
            colors[self.ignore_label] = colormap.VOID
        return colors

    def distinct_colors(self) -> np.ndarray:
        """Returns distinct colours of the classes, [C, 3] uint8; a blank class 0 is black."""
        return colormap.distinct(self.num_classes, first_is_black=self.class_0_is_blank)

    def to_json(self) -> dict[str, Any]:
        """Returns the description as JSON's own types; of word vectors only what they are."""
        content = {
            "name": self.name,
            "class_names": list(self.class_names),
            "ignore_label": self.ignore_label,
            "has_background": self.has_background,
            "palette": None if self.palette is None else [list(c) for c in self.palette],
        }
        if self.eval_ids is not None:
            content["eval_ids"] = list(self.eval_ids)
        if self.seen_unseen is not None:
            content["split"] = self.seen_unseen.to_json()
        if self.vectors is not None:
            content["vectors"] = self.vectors.to_json()
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any], *, where: str = DATASET_FILE) -> "DatasetSpec":
        """Builds a description from the content of a dataset.json, which knows no split.

        Raises:
          UserError: a field is missing or malformed.
        """

        def bad(what: str, received: Any = None, accepted: Any = None) -> UserError:
            return UserError(what, where=where, received=received, accepted=accepted, fix=_FIX)

        files.check_form(content, SPEC_FORM, what="A data set's description", where=where, fix=_FIX)
        names = tuple(content["class_names"])
        palette, eval_ids = content.get("palette"), content.get("eval_ids")
        if not 0 < len(names) <= _MAX_CLASSES or not all(names):
            raise bad(
                "class_names must be a list of names.",
                f"{len(names)} names" if all(names) else "an empty name",
                f"1 to {_MAX_CLASSES} names",
            )
        if len(set(names)) != len(names):
            twice = sorted({n for n in names if names.count(n) > 1})
            raise bad("class_names holds a name twice.", ", ".join(twice))
        if palette is not None and (
            len(palette) > _MAX_CLASSES or not all(len(color) == 3 for color in palette)
        ):
            raise bad("palette must hold triples within 0 and 255, one for each id.")
        if eval_ids is not None and len(eval_ids) != len(names):
            raise bad(
                "eval_ids must hold one id for each class.",
                f"{len(eval_ids)} ids",
                f"{len(names)} ids",
            )
        return cls(
            name=content["name"],
            class_names=names,
            ignore_label=content["ignore_label"],
            has_background=content["has_background"],
            palette=None if palette is None else tuple(map(tuple, palette)),
            eval_ids=None if eval_ids is None else tuple(eval_ids),
        )


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


_VOC = _names(
    "background,aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,diningtable,dog,horse,"
    "motorbike,person,pottedplant,sheep,sofa,train,tvmonitor"
)

_COCO = _names(
    "background,person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,"
    "fire hydrant,stop sign,parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,"
    "giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,"
    "baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,"
    "knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,"
    "couch,potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,"
    "microwave,oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,"
    "toothbrush"
)

_CITYSCAPES = _names(
    "road,sidewalk,building,wall,fence,pole,traffic light,traffic sign,vegetation,terrain,sky,"
    "person,rider,car,truck,bus,train,motorcycle,bicycle"
)

_ADE20K = _names(
    "other,wall,building,sky,floor,tree,ceiling,road,bed,windowpane,grass,cabinet,sidewalk,person,"
    "earth,door,table,mountain,plant,curtain,chair,car,water,painting,sofa,shelf,house,sea,mirror,"
    "rug,field,armchair,seat,fence,desk,rock,wardrobe,lamp,bathtub,railing,cushion,base,box,column,"
    "signboard,chest of drawers,counter,sand,sink,skyscraper,fireplace,refrigerator,grandstand,"
    "path,stairs,runway,case,pool table,pillow,screen door,stairway,river,bridge,bookcase,blind,"
    "coffee table,toilet,flower,book,hill,bench,countertop,stove,palm,kitchen island,computer,"
    "swivel chair,boat,bar,arcade machine,hovel,bus,towel,light,truck,tower,chandelier,awning,"
    "streetlight,booth,television receiver,airplane,dirt track,apparel,pole,land,bannister,"
    "escalator,ottoman,bottle,buffet,poster,stage,van,ship,fountain,conveyer belt,canopy,washer,"
    "plaything,swimming pool,stool,barrel,basket,waterfall,tent,bag,minibike,cradle,oven,ball,food,"
    "step,tank,trade name,microwave,pot,animal,bicycle,lake,dishwasher,screen,blanket,sculpture,"
    "hood,sconce,vase,traffic light,tray,ashcan,fan,pier,crt screen,plate,monitor,bulletin board,"
    "shower,radiator,glass,clock,flag"
)


# Names as in the list of all 459 classes, without blanks.
_PASCAL_CONTEXT = _names(
    "background,aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,table,dog,horse,"
    "motorbike,person,pottedplant,sheep,sofa,train,tvmonitor,bag,bed,bench,book,building,cabinet,"
    "ceiling,cloth,computer,cup,door,fence,floor,flower,food,grass,ground,keyboard,light,mountain,"
    "mouse,curtain,platform,sign,plate,road,rock,shelves,sidewalk,sky,snow,bedclothes,track,tree,"
    "truck,wall,water,window,wood"
)

# 91 things and 91 kinds of stuff of the 164k maps, whose ids leave out 'unlabeled'.
_COCO_STUFF = _names(
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,"
    "street sign,stop sign,parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,"
    "giraffe,hat,backpack,umbrella,shoe,eye glasses,handbag,tie,suitcase,frisbee,skis,snowboard,"
    "sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,plate,"
    "wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,"
    "pizza,donut,cake,chair,couch,potted plant,bed,mirror,dining table,window,desk,toilet,door,tv,"
    "laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,blender,"
    "book,clock,vase,scissors,teddy bear,hair drier,toothbrush,hair brush,banner,blanket,branch,"
    "bridge,building-other,bush,cabinet,cage,cardboard,carpet,ceiling-other,ceiling-tile,cloth,"
    "clothes,clouds,counter,cupboard,curtain,desk-stuff,dirt,door-stuff,fence,floor-marble,"
    "floor-other,floor-stone,floor-tile,floor-wood,flower,fog,food-other,fruit,furniture-other,"
    "grass,gravel,ground-other,hill,house,leaves,light,mat,metal,mirror-stuff,moss,mountain,mud,"
    "napkin,net,paper,pavement,pillow,plant-other,plastic,platform,playingfield,railing,railroad,"
    "river,road,rock,roof,rug,salad,sand,sea,shelf,sky-other,skyscraper,snow,solid-other,stairs,"
    "stone,straw,structural-other,table,tent,textile-other,towel,tree,vegetable,wall-brick,"
    "wall-concrete,wall-other,wall-panel,wall-stone,wall-tile,wall-wood,water-other,waterdrops,"
    "window-blind,window-other,wood"
)


def _unique(names: tuple[str, ...]) -> tuple[str, ...]:
    """Numbers repeated names, so that a name says which class is meant."""
    return tuple(
        name if names.count(name) == 1 else f"{name} ({names[: i + 1].count(name)})"
        for i, name in enumerate(names)
    )


DATASETS: dict[str, DatasetSpec] = {
    "pascal_voc_seg": DatasetSpec("pascal_voc_seg", _VOC),
    "coco": DatasetSpec("coco", _COCO),
    "cityscapes": DatasetSpec(
        "cityscapes",
        _CITYSCAPES,
        has_background=False,
        palette=colormap.as_palette(colormap.cityscapes()),
        # Ids of the official labels, in which the benchmark takes predictions.
        eval_ids=(7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33),
    ),
    "pascal_context": DatasetSpec("pascal_context", _PASCAL_CONTEXT),
    "coco_stuff": DatasetSpec("coco_stuff", _COCO_STUFF, has_background=False),
    # Class 0 ("other") is both the ignore label and the slot of background, as published.
    "ade20k": DatasetSpec(
        "ade20k",
        _unique(_ADE20K),
        ignore_label=0,
        palette=colormap.as_palette(colormap.ade20k()),
    ),
}


def read_dataset_json(dataset_dir: str) -> dict[str, Any] | None:
    """Returns the content of dataset.json, None where there is none.

    Raises:
      UserError: the file is not a JSON object; see also `files.read_json`.
    """
    path = os.path.join(dataset_dir, DATASET_FILE)
    form = {"splits?": {str: object}}
    try:
        return files.read_json(
            path,
            form,
            what=DATASET_FILE,
            fix="make the records again",
            open_file=storage.open_whole,
        )
    except FileNotFoundError:
        return None


def split_entry(content: Mapping[str, Any], split: str, *, where: str) -> dict[str, Any] | None:
    """Returns what dataset.json says of a split, None where it does not list it.

    Args:
      content: of `read_dataset_json`.
      split: its name.
      where: the file, for messages.

    Returns:
      'shards': 'file', 'records', 'bytes' and 'sha256' of each; 'count', 'pixels' by class name and
      others may be absent.

    Raises:
      UserError: the entry has another structure, or lists a shard twice.
    """
    splits = content.get("splits", {})
    if split not in splits:
        return None
    entry, where = splits[split], f"{where}, split '{split}'"
    files.check_form(
        entry, _ENTRY_FORM, what=DATASET_FILE, where=where, fix="make the records again"
    )
    names = [shard["file"] for shard in entry["shards"]]
    if len(set(names)) != len(names):
        raise UserError(
            "dataset.json lists a shard twice.", where=where, fix="make the records again"
        )
    return entry


def load_spec(dataset_dir: str, name: str) -> DatasetSpec:
    """Returns the description of a folder of records.

    Args:
      dataset_dir: folder of the shards; its dataset.json wins.
      name: entry of DATASETS that describes records without a dataset.json.

    Raises:
      UserError: no such folder, a malformed dataset.json, or an unknown name.
    """
    if not storage.is_folder(dataset_dir):
        raise UserError(
            "The folder of records does not exist.",
            where=dataset_dir,
            accepted="what tfrecords_tools/build_*.py wrote (--output_dir)",
            fix=files.did_you_mean(
                dataset_dir, "make it with one of tfrecords_tools/build_*.py (tfseg convert)"
            ),
        )
    content = read_dataset_json(dataset_dir)
    if content is not None:
        return DatasetSpec.from_json(content, where=os.path.join(dataset_dir, DATASET_FILE))
    if name not in DATASETS:
        raise UserError(
            "The folder has no dataset.json and the data set is not a known one.",
            where=dataset_dir,
            received=f"--dataset={name}",
            accepted=", ".join(sorted(DATASETS)),
            fix="make the records with tfrecords_tools, which write dataset.json",
        )
    _tell_assumed(dataset_dir, name)
    return DATASETS[name]


@functools.cache
def _tell_assumed(dataset_dir: str, name: str) -> None:
    classes = DATASETS[name].class_names
    print(
        f"note: {dataset_dir} has no {DATASET_FILE}: its classes are taken to be the "
        f"{len(classes)} of --dataset={name} ({', '.join(classes[:3])} ...)",
        flush=True,
    )
