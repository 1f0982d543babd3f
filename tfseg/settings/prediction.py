"""Settings of predictions, of `eval.py`, of `vis.py` and of `predict.py`."""

import dataclasses
from typing import ClassVar

from tfseg.settings.option import Section, option


@dataclasses.dataclass(frozen=True)
class PredictionConfig(Section):
    """How `eval.py`, `vis.py` and `predict.py` get from an image to labels."""

    GROUP: ClassVar[str] = "prediction"

    eval_scales: tuple[float, ...] = option(
        (1.0,),
        "Input scale; repeat the flag for several, whose predictions are merged.",
        multi=True,
        group="prediction",
    )
    add_flipped_images: bool = option(False, "Average with the mirrored image.", group="prediction")
    merge_scales: str = option(
        "probs",
        "What is averaged over scales and mirror images. probs: probabilities, as in DeepLab. "
        "logits: as in Learning Pseudo Labels. masks: probabilities at the network's own "
        "resolution, and image-level scores, as in SLRNet.",
        choices=("probs", "logits", "masks"),
        group="prediction",
    )
    scale_kernel: str = option(
        "bilinear",
        "How the input is scaled. bilinear: with aligned corners, as in DeepLab. cubic: as OpenCV "
        "does, published for Learning Pseudo Labels. pillow: cubic as Pillow does, published for "
        "SLRNet.",
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
    tile_size: int | None = option(
        None,
        "Predict in overlapping tiles of this many pixels a side and blend their probabilities, "
        "for images too large to be predicted as a whole. None: no tiles.",
        limits=(2, None),
        group="prediction",
    )
    tile_overlap: int | None = option(
        None,
        "Pixels that neighbouring tiles share. None: half of --tile_size.",
        limits=(0, None),
        needs="tile_size",
        group="prediction",
    )
    eval_resize: str = option(
        "none",
        "Size of image and mask in evaluation. none: their own. warp: --eval_resize_side on both "
        "sides, published for STRICT. short_side: on the shorter side, published for ZS3Net. "
        "Masks are resized too: only for the comparison with published numbers.",
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
        "Predict in windows of this many pixels a side, which lie two thirds of a side apart, and "
        "add up their probabilities. Published on Cityscapes: 801 for UniMatch, 798 for UniMatch "
        "V2. None: no windows.",
        limits=(3, None),
        group="prediction",
    )
    window_border: str = option(
        "shift",
        "What happens to windows of --sliding_window that reach over the image's border. shift: "
        "they are moved back into the image, as in UniMatch V2. cut: they are cut off, as in "
        "UniMatch.",
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
        "In each image predict only background and the classes of its image-level labels "
        "(image/class/label of its record).",
        group="prediction",
    )
    fp_cut: float | None = option(
        None,
        "With --merge_scales=masks: leave out classes whose image-level score (0 to 1) is not "
        "above this; published: 0.3. None: leave out none.",
        limits=(0, 1),
        needs="merge_scales=masks",
        group="prediction",
    )
    topk_classes: int | None = option(
        None,
        "With --merge_scales=masks: keep only this many classes, those with the highest "
        "image-level scores; published: 6, for COCO 8. None: keep all.",
        limits=(1, None),
        needs="merge_scales=masks",
        group="prediction",
    )
    bg_pow: float = option(
        1.0,
        "With --merge_scales=masks: raise the background's mask to this power; published: 3 for "
        "networks trained without masks, else 1.",
        limits=(1e-3, None),
        needs="merge_scales=masks",
        group="prediction",
    )
    suppressed_class: str | None = option(
        None,
        "With --merge_scales=masks: name of a class that is found too often; its mask is raised to "
        "the power of twice --bg_pow. Published for COCO: person.",
        needs="merge_scales=masks",
        group="prediction",
    )
    seen_bias: float = option(
        0.0,
        "With a --class_split: number that is subtracted from the scores of seen classes, which "
        "otherwise win over unseen ones (calibrated stacking). SPNet: 0.6 on PASCAL VOC, 0.4 on "
        "COCO-Stuff. Choose it by --seen_bias_sweep.",
        limits=(0, None),
        group="prediction",
    )
    seen_bias_space: str = option(
        "prob",
        "Scores from which --seen_bias is subtracted: probabilities (published), or logits.",
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
        "Processes of --dense_crf; 0: as many as there are cores. Each holds the probabilities of "
        "a few images in memory.",
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
    eval_crop_size: tuple[int, ...] | None = option(
        None,
        "Images are padded to this height,width; larger ones stay as they are. None: each image is "
        "padded to the next size that the network takes. 0,0: no padding. Padding changes "
        "predictions a little.",
    )
    eval_interval_secs: int = option(300, "Seconds between looks for a new checkpoint.")
    max_number_of_evaluations: int = option(0, "Stop after so many evaluations; 0: never.")
    network: str | None = option(
        None,
        "Which network of the checkpoint: ema (of --ema_decay, or the teacher of unimatch_v2 and "
        "fixmatch_v2), or hybrid or pseudo (of learning_pseudo_labels). None: the trained network "
        "itself; for learning_pseudo_labels hybrid.",
    )
    weakly: bool = option(False, "Also report image-level classification metrics.")
    absent_classes: str = option(
        "skip",
        "IoU of classes neither in masks nor in predictions. skip: the mean leaves them out. zero: "
        "it is 0, as in the published evaluation of Learning Pseudo Labels.",
        choices=("skip", "zero"),
    )
    modes: tuple[str, ...] | None = option(
        None,
        "Scores of a run with a --class_split, comma-separated. generalised: all classes may be "
        "predicted; mIoU and class IoUs are those of this mode. zero_label: only unseen classes "
        "may be predicted, and only their pixels count. vanilla: only unseen classes may be "
        "predicted, and all pixels count. None: all three, with --dense_crf only generalised.",
    )
    seen_bias_sweep: str | None = option(
        None,
        "Values of --seen_bias to compare: first:last:step, for example 0:1:0.05. The generalised "
        "mode is also scored with each of them. It needs a run with --exclude_validation_classes.",
    )
    num_clones: int = option(1, "Replicas for evaluation.", limits=(1, None))
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
    vis_crop_size: tuple[int, ...] | None = option(
        None,
        "Images are padded to this height,width; larger ones stay as they are. None: each image is "
        "padded to the next size that the network takes. 0,0: no padding. Padding changes "
        "predictions a little.",
    )
    colormap_type: str | None = option(
        None,
        "Colours; None: the palette of the records' dataset.json, else the data set's own, else "
        "distinct ones.",
        choices=("pascal", "cityscapes", "ade20k", "distinct"),
    )
    also_save_raw_predictions: bool = option(
        False, "Also write class-id PNGs at the original size."
    )
    network: str | None = option(
        None,
        "Which network of the checkpoint: ema (of --ema_decay, or the teacher of unimatch_v2 and "
        "fixmatch_v2), or hybrid or pseudo (of learning_pseudo_labels). None: the trained network "
        "itself; for learning_pseudo_labels hybrid.",
    )
    max_number_of_iterations: int = option(0, "One pass is always made.", dead=True)
    eval_interval_secs: int = option(300, "One pass is always made.", dead=True)
    master: str = option("", "Unused.", dead=True)
    quantize_delay_step: int = option(-1, "Unused.", dead=True)


_NO_RECORDS = "plain images have no records"


@dataclasses.dataclass(frozen=True)
class ImagesConfig(PredictionConfig):
    """Which images `predict.py` takes, and what it writes of them."""

    GROUP: ClassVar[str] = "plain images"

    checkpoint_dir: str | None = option(
        None, "Training directory (newest checkpoint) or a checkpoint prefix.", required=True
    )
    images: str | None = option(
        None,
        "An image file; a folder, with all folders in it; a pattern such as 'photos/*.jpg', in "
        "quotes; or a text file with one path a line, relative to that file.",
        required=True,
    )
    output_dir: str | None = option(
        None,
        "Directory for what is written. A second run predicts only the images that are not there "
        "yet.",
        required=True,
    )
    save: tuple[str, ...] = option(
        ("index", "color", "overlay"),
        "What is written, comma-separated: index (PNG of class ids), color (PNG), overlay (JPEG), "
        "probabilities (.npz of float16), coco (run lengths of each class in coco.json).",
    )
    scale: str = option(
        "none",
        "Size at which images are predicted. none: their own, or that of the run's "
        "--min_resize_value. auto: that of the run's training images (from its config.json).",
        choices=("none", "auto"),
    )
    part: str | None = option(
        None,
        "k/n, for example 3/16: predict share k of n. The names of the images decide which share "
        "they are in. n machines can predict one share each, with one --output_dir.",
    )
    network: str | None = option(
        None,
        "Which network of the checkpoint: ema, or hybrid or pseudo (of learning_pseudo_labels). "
        "None: the trained network itself; for learning_pseudo_labels hybrid.",
    )
    colormap_type: str | None = option(
        None,
        "Colours; None: the palette of the training records, else distinct ones.",
        choices=("pascal", "cityscapes", "ade20k", "distinct"),
    )
    max_image_megapixels: float = option(
        200.0,
        "Refuse to decode images whose header declares more than this many megapixels.",
        limits=(0, None),
    )
    max_probability_megabytes: float = option(
        2000.0,
        "With --save=probabilities: refuse images whose probabilities (two bytes per pixel and "
        "class) would take more megabytes than this.",
        limits=(0, None),
    )
    strategy: str = option(
        "auto",
        "auto: every GPU, else the CPU; one_device; or mirrored, --num_clones GPUs or parts of the "
        "CPU. Each image is predicted on one of them.",
        choices=("auto", "one_device", "mirrored"),
    )
    num_clones: int = option(
        2, "Replicas of --strategy=mirrored.", limits=(1, None), needs="strategy=mirrored"
    )

    # What comes with records.
    use_image_labels: bool = option(
        False, "Image-level labels of records.", unsupported=_NO_RECORDS
    )
    eval_resize: str = option("none", "Size of image and mask.", unsupported=_NO_RECORDS)
    eval_resize_side: int = option(513, "Pixels of --eval_resize.", unsupported=_NO_RECORDS)
