"""Settings of predictions, of `eval.py` and of `vis.py`."""

import dataclasses
from typing import ClassVar

from tfseg.settings.option import Section, option


@dataclasses.dataclass(frozen=True)
class PredictionConfig(Section):
    """How `eval.py` and `vis.py` get from an image to labels."""

    GROUP: ClassVar[str] = "prediction"

    eval_scales: tuple[float, ...] = option(
        (1.0,), "Input scales; repeat the flag.", multi=True, group="prediction"
    )
    add_flipped_images: bool = option(False, "Average with the mirrored image.", group="prediction")
    merge_scales: str = option(
        "probs",
        "What is averaged over scales and mirror images: probabilities, as DeepLab does; logits, "
        "as Learning Pseudo Labels does; or masks (probabilities at the network's own resolution) "
        "and image-level scores, as SLRNet does.",
        choices=("probs", "logits", "masks"),
        group="prediction",
    )
    scale_kernel: str = option(
        "bilinear",
        "How the input is scaled: bilinear with aligned corners, as DeepLab does, or cubic as "
        "OpenCV or Pillow does, for networks tested that way (Learning Pseudo Labels, SLRNet).",
        choices=("bilinear", "cubic", "pillow"),
        group="prediction",
    )
    max_side: int | None = option(
        None,
        "Halve the image while a side is longer than this many pixels; 1000 is published for "
        "L2ID. None: off.",
        limits=(2, None),
        group="prediction",
    )
    eval_resize: str = option(
        "none",
        "Size of image and mask in evaluation: none, their own; warp, --eval_resize_side on both "
        "sides, as STRICT is tested; short_side, on the shorter side, as ZS3Net is tested. Scores "
        "are then of resized masks, which is for the comparison with published numbers.",
        choices=("none", "warp", "short_side"),
        group="prediction",
    )
    eval_resize_side: int = option(
        513,
        "Pixels of --eval_resize; ZS3Net: 312 while it trains.",
        limits=(1, None),
        group="prediction",
    )
    sliding_window: int | None = option(
        None,
        "See an image through windows of this side in pixels, two thirds of it apart, and add up "
        "their probabilities; published on Cityscapes: 801 for UniMatch, 798 for UniMatch V2. "
        "None: as a whole.",
        limits=(3, None),
        group="prediction",
    )
    window_border: str = option(
        "shift",
        "The last windows of --sliding_window: moved back into the image, as in UniMatch V2, or "
        "cut off at its border, as in UniMatch.",
        choices=("shift", "cut"),
        needs="sliding_window",
        group="prediction",
    )
    input_multiple: int | None = option(
        None,
        "Resize an image so that both sides are the nearest multiple of this many pixels, and the "
        "logits back; published for UniMatch V2: 14. None: off.",
        limits=(1, None),
        group="prediction",
    )
    use_image_labels: bool = option(
        False,
        "Allow in each image only background and the classes of its image-level labels "
        "(image/class/label of its record).",
        group="prediction",
    )
    fp_cut: float | None = option(
        None,
        "With --merge_scales=masks: take out the classes whose image-level score (0 to 1) is not "
        "above this; published: 0.3. None: none for that reason.",
        limits=(0, 1),
        needs="merge_scales=masks",
        group="prediction",
    )
    topk_classes: int | None = option(
        None,
        "With --merge_scales=masks: take out all but this many classes of the highest image-level "
        "scores; published: 6, COCO 8. None: none for that reason.",
        limits=(1, None),
        needs="merge_scales=masks",
        group="prediction",
    )
    bg_pow: float = option(
        1.0,
        "With --merge_scales=masks: raise the background's mask to this power; published: 3 where "
        "no mask was trained on, else 1.",
        limits=(1e-3, None),
        needs="merge_scales=masks",
        group="prediction",
    )
    suppressed_class: str | None = option(
        None,
        "With --merge_scales=masks: raise the mask of the class of this name to twice the power "
        "of --bg_pow; published for COCO: person.",
        needs="merge_scales=masks",
        group="prediction",
    )
    seen_bias: float = option(
        0.0,
        "With a --class_split: how much seen classes are weakened against unseen ones, whose "
        "labels the network never saw (calibrated stacking). SPNet: 0.6 on PASCAL VOC, 0.4 on "
        "COCO-Stuff. Choose it by --seen_bias_sweep.",
        limits=(0, None),
        group="prediction",
    )
    seen_bias_space: str = option(
        "prob",
        "What --seen_bias is subtracted from: probabilities, as published, or logits.",
        choices=("prob", "logit"),
        group="prediction",
    )
    dense_crf: bool = option(
        False,
        "Refine the probabilities by a dense CRF on the original image (extra [crf]); the "
        "defaults of its flags are those of Learning Pseudo Labels.",
        group="dense CRF",
    )
    crf_iterations: int = option(
        1,
        "Mean-field iterations of --dense_crf; SLRNet: 10.",
        limits=(1, None),
        needs="dense_crf",
        group="dense CRF",
    )
    crf_gaussian_sxy: float = option(
        3.0,
        "Standard deviation in pixels of the CRF's position kernel.",
        limits=(1e-3, None),
        needs="dense_crf",
        group="dense CRF",
    )
    crf_gaussian_compat: float = option(
        3.0,
        "Weight of the CRF's position kernel.",
        limits=(0, None),
        needs="dense_crf",
        group="dense CRF",
    )
    crf_bilateral_sxy: float = option(
        32.0,
        "Standard deviation in pixels of the CRF's position-and-colour kernel; SLRNet: 80.",
        limits=(1e-3, None),
        needs="dense_crf",
        group="dense CRF",
    )
    crf_bilateral_srgb: float = option(
        13.0,
        "Standard deviation in grey levels of the CRF's position-and-colour kernel.",
        limits=(1e-3, None),
        needs="dense_crf",
        group="dense CRF",
    )
    crf_bilateral_compat: float = option(
        10.0,
        "Weight of the CRF's position-and-colour kernel.",
        limits=(0, None),
        needs="dense_crf",
        group="dense CRF",
    )
    crf_workers: int = option(
        0,
        "Processes of --dense_crf, each with a few images' probabilities in memory; 0: as many as "
        "there are cores.",
        limits=(0, None),
        needs="dense_crf",
        group="dense CRF",
    )


@dataclasses.dataclass(frozen=True)
class EvalConfig(PredictionConfig):
    """What `eval.py` measures, of which checkpoint, and where it writes."""

    GROUP: ClassVar[str] = "evaluation"

    eval_logdir: str | None = option(
        None, "Directory for metrics.json and TensorBoard.", required=True
    )
    checkpoint_dir: str | None = option(
        None, "Training directory (newest checkpoint) or a checkpoint prefix.", required=True
    )
    eval_split: str = option("val", "Split to evaluate.")
    eval_batch_size: int = option(1, "Images per step, over all replicas.")
    eval_crop_size: tuple[int, ...] = option(
        (513, 513),
        "Images are padded to this height,width; larger ones are taken whole. 0,0: no padding at "
        "all, which image-level scores would notice.",
    )
    eval_interval_secs: int = option(300, "Seconds between looks for a new checkpoint.")
    max_number_of_evaluations: int = option(0, "Stop after so many evaluations; 0: never.")
    network: str | None = option(
        None,
        "Which network of the checkpoint: ema (of --ema_decay, or the teacher of unimatch_v2 and "
        "fixmatch_v2), or hybrid, pseudo of learning_pseudo_labels; None: the deployable one.",
    )
    weakly: bool = option(False, "Also report image-level classification metrics.")
    absent_classes: str = option(
        "skip",
        "Classes that are neither in the masks nor in the predictions: left out of the mean IoU, "
        "or an IoU of zero, as the published evaluation of Learning Pseudo Labels has it.",
        choices=("skip", "zero"),
    )
    modes: tuple[str, ...] | None = option(
        None,
        "With a --class_split, comma-separated: generalised (all classes may be predicted; what "
        "mIoU and class IoUs are of), zero_label (unseen classes alone may be predicted, and their "
        "pixels alone count), vanilla (as zero_label, but all pixels count). None: all three; with "
        "--dense_crf generalised alone.",
    )
    seen_bias_sweep: str | None = option(
        None,
        "first:last:step, for example 0:1:0.05: score the generalised mode with each of these "
        "values of --seen_bias too, of a run with --exclude_validation_classes.",
    )
    num_clones: int = option(1, "Replicas for evaluation.")
    master: str = option("", "Unused.", dead=True)
    quantize_delay_step: int = option(-1, "Unused.", dead=True)


@dataclasses.dataclass(frozen=True)
class VisConfig(PredictionConfig):
    """Which predictions `vis.py` draws, and where."""

    GROUP: ClassVar[str] = "pictures"

    vis_logdir: str | None = option(None, "Directory for the pictures.", required=True)
    checkpoint_dir: str | None = option(
        None, "Training directory (newest checkpoint) or a checkpoint prefix.", required=True
    )
    vis_split: str = option("val", "Split to draw.")
    vis_batch_size: int = option(1, "Images per step.")
    vis_crop_size: tuple[int, ...] = option(
        (513, 513),
        "Images are padded to this height,width; larger ones are taken whole. 0,0: no padding at "
        "all, which image-level scores would notice.",
    )
    colormap_type: str | None = option(
        None,
        "Colours; None: the palette of the records' dataset.json, else the data set's own.",
        choices=("pascal", "cityscapes", "ade20k"),
    )
    also_save_raw_predictions: bool = option(
        False, "Also write class-id PNGs at the original size."
    )
    network: str | None = option(
        None,
        "Which network of the checkpoint: ema (of --ema_decay, or the teacher of unimatch_v2 and "
        "fixmatch_v2), or hybrid, pseudo of learning_pseudo_labels; None: the deployable one.",
    )
    max_number_of_iterations: int = option(0, "One pass is always made.", dead=True)
    eval_interval_secs: int = option(300, "One pass is always made.", dead=True)
    master: str = option("", "Unused.", dead=True)
    quantize_delay_step: int = option(-1, "Unused.", dead=True)
