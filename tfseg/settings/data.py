"""Settings of the data."""

import dataclasses
from typing import Any, ClassVar

from tfseg.settings.augmentations import AUGMENTATIONS
from tfseg.settings.option import FREELY, NEVER, Section, option, owned


@dataclasses.dataclass(frozen=True)
class DataConfig(Section):
    """Where the records are, how they are augmented, and what happens to damaged ones."""

    GROUP: ClassVar[str] = "data"

    dataset_dir: str | None = option(
        None,
        "Directory of records: the shards <split>-*.tfrecord. Also s3://, gs:// (extra [remote]).",
        required=True,
        may_differ=FREELY,
        remote=True,
    )
    dataset_dir_cls: str | None = option(
        None,
        "Directory of --train_split_cls; None: --dataset_dir. It must have the same classes.",
        training=True,
        may_differ=FREELY,
        remote=True,
    )
    dataset: str = option(
        "pascal_voc_seg",
        "Description of the classes for records that carry no dataset.json: pascal_voc_seg, "
        "coco, cityscapes, ade20k. Records with a dataset.json describe themselves.",
    )
    train_split: str = option("train", "Split with pixel labels.", training=True)
    train_split_cls: str = option(
        "train_aug", "Second split: images without labels or with image-level ones.", training=True
    )
    image_label_source: str = option(
        "record",
        "Source of the image-level labels. record: image/class/label of the record. crop: the "
        "classes in the augmented crop of the mask, as published.",
        choices=("record", "crop"),
        training=True,
    )
    train_crop_size: tuple[int, ...] = option(
        (513, 513), "Crop height,width in pixels.", training=True
    )
    min_resize_value: int | None = option(
        None,
        "Resize the shorter side to this many pixels before augmentation; None: off.",
        limits=(1, None),
    )
    max_resize_value: int | None = option(
        None, "Cap of the longer side in that resize, in pixels.", limits=(1, None)
    )
    resize_factor: int | None = option(
        None, "Make resized sides a multiple of this, plus one; None: off.", limits=(1, None)
    )
    keep_aspect_ratio: bool = option(
        True, "The published preprocessing always keeps the aspect ratio.", dead=True
    )
    class_split: str | None = option(
        None,
        "Seen and unseen classes of a zero-label run: spnet_voc12, spnet_cocostuff, "
        "zs3_voc_{2,4,6,8,10}, zs3_context_{2,4,6,8,10}, or a JSON file with lists of names "
        "'seen', 'unseen', 'validation', and 'background', a name or null.",
        group="seen and unseen classes",
    )
    seen_background: bool = option(
        False,
        "Background is a seen class, even if the --class_split leaves it out.",
        needs="class_split",
        group="seen and unseen classes",
    )
    exclude_validation_classes: bool = option(
        False,
        "For choosing settings: the split's validation classes take the place of the unseen ones, "
        "which are left out.",
        needs="class_split",
        group="seen and unseen classes",
    )
    class_embeddings: str | None = option(
        None,
        "Word vectors of the classes: FILE.npz[:ARRAY][+FILE.npz[:ARRAY]...] with arrays 'names' "
        "and 'vectors' (or ARRAY). The vectors of several files are joined, class by class.",
        group="seen and unseen classes",
    )
    embedding_norm: str = option(
        "unit",
        "Normalisation of the joined word vectors. unit: each has length 1. max_norm: all are "
        "divided by the length of the longest.",
        choices=("unit", "max_norm", "none"),
        needs="class_embeddings",
        group="seen and unseen classes",
    )
    drop_images: str | None = option(
        None,
        "File with ids of training images to leave out, one a line. ZS3Net's first step leaves out "
        "the images that show unseen classes; tfrecords_tools/check.py --ids_with lists them. Such "
        "a list uses labels of unseen classes: it says which images do not show them.",
        training=True,
        may_differ=NEVER,
    )
    augmentation: str = option(
        "deeplab",
        "Augmentation of training images: deeplab (random scale, crop and flip); composition "
        "(--augmentation_ops random operations, some on colours, the others geometric, and a "
        "random crop; as published for Learning Pseudo Labels); randaugment (--augmentation_ops "
        "random operations on colours, then as deeplab); resized_crop (a crop of random "
        "--crop_area and shape resized to --train_crop_size, flip, colour jitter; as published "
        "for SLRNet); warped_crop (the image warped to a square of --augmentation_size, random "
        "scale, crop and flip; as published for STRICT); short_side_crop (the shorter side "
        "scaled to a random length, crop, flip and blur; as published for ZS3Net); or "
        "long_side_crop (the longer side scaled to a random length, crop, flip; strong views with "
        "jitter, grey and blur; as published for UniMatch).",
        choices=tuple(AUGMENTATIONS),
        training=True,
        group="augmentation",
    )
    flip_probability: float = option(
        0.5,
        "Probability of mirroring left and right. 0 if left and right differ in meaning; published "
        "for STRICT: 0.9.",
        limits=(0, 1),
        training=True,
        group="augmentation",
    )
    jitter_strength: float = option(
        1.0,
        "Factor on the ranges of the colour jitter, 0 to 1. 1: as published, of strong views "
        "(brightness and contrast 0.5, saturation 0.5, hue 0.25) or of resized_crop (0.3, 0.3, 0.3 "
        "and 0.1).",
        limits=(0, 1),
        training=True,
        group="augmentation",
    )
    cutout_half_size: int = option(
        50,
        "Half the side, in pixels, of the square cut out of strong views; 0: none. The default is "
        "made for crops of 513; smaller crops need less.",
        limits=(0, None),
        training=True,
        group="augmentation",
    )
    skip_bad_records: bool = option(
        False,
        "Replace damaged records by the next good one, list them in "
        "<train_logdir>/bad_records.txt and go on; false: stop with a message.",
        training=True,
    )
    max_bad_record_fraction: float = option(
        0.01,
        "With --skip_bad_records: stop when more than this share of a split is damaged.",
        training=True,
        needs="skip_bad_records",
        limits=(0, 1),
    )
    max_image_megapixels: float = option(
        64.0,
        "Refuse to decode images whose header declares more than this many megapixels.",
        limits=(0, None),
    )
    data_threads: int = option(
        0,
        "Parallel calls of the input pipeline; 0: as many as there are cores.",
        group="precision and devices",
        limits=(0, None),
    )
    augmentation_settings: Any = owned("augmentation", AUGMENTATIONS)
