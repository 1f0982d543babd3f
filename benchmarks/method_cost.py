"""Times the methods' steps as multiples of a supervised step, all in one process.

    python benchmarks/method_cost.py --backbone=xception_65 --crop=257 --batch=2 --steps=5

The variants take turns, so that all see the same machine. Each is a whole step (forward, backward,
update) on a fixed batch, as the trainer makes it. Ideal cost of the shared passes: a supervised
step is a forward pass and a backward pass of twice its work, 3; unlabelled images add the strong
view, 3, and the weak one without gradient, 1: 7/3. With image-level labels the weak backbone has
a gradient too: 9/3. Learning Pseudo Labels runs two networks on both streams together; its measure
is two supervised steps of that doubled batch. STRICT's teacher adds a forward pass of every view:
(1 + 1.5^2 + 1.75^2) 2 = 12.6 for the published six, 15.6/3 in all. UniMatch sees two strong views
(6) and the weak one with gradient (3), the donor without (1), and trains its decoder once more on
dropped features: 13/3 of the encoder, 19/3 of the decoder. ZS3Net trains the last layer on
features that one forward pass makes, 1/3, and its generator.
"""

import argparse
import dataclasses

import tfseg  # noqa: F401  (selects Keras 2 before TensorFlow is imported)

import numpy as np
import tensorflow as tf
from turns import median_times

from tfseg.data.class_embeddings import ClassVectors
from tfseg.data.class_splits import ClassSplit
from tfseg.data.specs import DATASETS, DatasetSpec
from tfseg.data.stream import strong_keys
from tfseg.models import BACKBONES, model_builder
from tfseg.settings.data import DataConfig
from tfseg.settings.heads import HEADS
from tfseg.settings.methods import METHODS
from tfseg.settings.network import ModelConfig
from tfseg.settings.run import TrainConfig
from tfseg.training.trainer import Trainer

PLAIN_SPEC = DATASETS["pascal_voc_seg"]
# The last five classes have no pixel labels, as in SPNet's split; random vectors of its width.
SPLIT_SPEC = dataclasses.replace(
    PLAIN_SPEC,
    seen_unseen=ClassSplit(
        "last five", seen=tuple(range(16)), unseen=tuple(range(16, 21)), background=0
    ),
    vectors=ClassVectors(
        np.random.default_rng(0).normal(size=(PLAIN_SPEC.num_classes, 600)).astype(np.float32),
        source="random",
        sha256="",
        norm="none",
    ),
)


@dataclasses.dataclass(frozen=True)
class Variant:
    """One kind of step.

    Attributes:
      name: in the table.
      method: key of METHODS.
      train: settings of the run.
      method_settings: settings of the method.
      network: settings of the network, over those of the command line.
      batch_factor: times --batch, the images of each stream.
      measure: the step that it is a multiple of.
      measure_factor: how many of those.
    """

    name: str
    method: str
    train: dict = dataclasses.field(default_factory=dict)
    method_settings: dict = dataclasses.field(default_factory=dict)
    network: dict = dataclasses.field(default_factory=dict)
    batch_factor: int = 1
    measure: str = "supervised"
    measure_factor: int = 1


_SEPARATE, _WEAKLY = {"separate_passes": True}, {"weakly": True}
_ONE_VIEW = {"view_scales": None, "mirror_views": False}
_DOUBLED = "supervised, doubled batch"
_PROJECTION = {"head": "projection"}
# UniMatch's own decoder.
_PLAIN = {"decoder_use_separable_conv": False, "aspp_with_separable_conv": False}
VARIANTS = {
    "pseudoseg": (
        Variant("supervised", "supervised"),
        Variant("pseudoseg, unlabelled", "pseudoseg"),
        Variant("pseudoseg, unlabelled, separate passes", "pseudoseg", {}, _SEPARATE),
        Variant("pseudoseg, weakly", "pseudoseg", _WEAKLY),
        Variant("pseudoseg, weakly, separate passes", "pseudoseg", _WEAKLY, _SEPARATE),
    ),
    "learning_pseudo_labels": (
        Variant(_DOUBLED, "supervised", batch_factor=2, measure=_DOUBLED),
        Variant(
            "learning_pseudo_labels",
            "learning_pseudo_labels",
            measure=_DOUBLED,
            measure_factor=2,
        ),
    ),
    "strict": (
        Variant("supervised", "supervised"),
        Variant("spnet", "spnet", network=_PROJECTION),
        Variant("strict, six views", "strict", network=_PROJECTION),
        Variant("strict, one view", "strict", {}, _ONE_VIEW, network=_PROJECTION),
    ),
    "unimatch": (
        Variant("supervised", "supervised"),
        Variant("fixmatch", "fixmatch"),
        Variant("unimatch", "unimatch"),
        Variant("unimatch, weakly", "unimatch", _WEAKLY),
        Variant("unimatch_v2", "unimatch_v2"),
        Variant("supervised, plain head", "supervised", network=_PLAIN),
        Variant("unimatch, plain head", "unimatch", network=_PLAIN),
    ),
    "unimatch_v2": (
        Variant("supervised", "supervised"),
        Variant("fixmatch_v2", "fixmatch_v2"),
        Variant("unimatch_v2", "unimatch_v2"),
    ),
    "zs3net": (
        Variant("supervised", "supervised"),
        Variant("zs3net, per class", "zs3net"),
        Variant("zs3net, mean", "zs3net", {}, {"generator_updates": "mean"}),
        Variant("zs3net, graphs", "zs3net", {}, {"graph_context": True}),
    ),
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--method", default="pseudoseg", choices=list(VARIANTS))
    parser.add_argument("--backbone", default="xception_65", choices=list(BACKBONES))
    parser.add_argument("--head", default="deeplab", choices=list(HEADS), help="dpt: of a ViT")
    parser.add_argument("--crop", type=int, default=257, help="pixels, both sides")
    parser.add_argument("--batch", type=int, default=2, help="images of each stream")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each variant")
    return parser.parse_args()


def _spec(method: str) -> DatasetSpec:
    """Returns VOC, with seen and unseen classes where the method needs them."""
    return SPLIT_SPEC if method in ("spnet", "strict", "zs3net") else PLAIN_SPEC


def _batch(method, config: TrainConfig, settings, crop: int) -> dict[str, dict[str, tf.Tensor]]:
    """Returns random images and labels in the shape that the method's streams ask for."""
    rng = np.random.default_rng(0)
    size = (config.train_batch_size, crop, crop)
    spec = _spec(method)
    streams = METHODS[method].load().streams(DataConfig(dataset_dir="none"), config, settings)
    batch = {}
    for name, stream in streams.items():
        image = tf.constant(rng.uniform(0, 255, (*size, 3)), tf.float32)
        # Squares of 48 pixels: graphs have a node for every region.
        coarse = rng.integers(0, spec.num_classes, (size[0], *[-(-crop // 48)] * 2))
        label = np.kron(coarse, np.ones((1, 48, 48), np.int32))[:, :crop, :crop]
        if stream.labels == "seen":
            label = spec.seen_unseen.training_table(spec.num_classes, spec.ignore_label)[label]
        label = tf.constant(label, tf.int32)
        part = {"image": image, "valid": tf.ones(size), "label": label, "hidden_label": label}
        part["has_label"] = tf.ones(size[:1], tf.bool)
        if stream.labels == "seen":
            part["candidate"] = tf.equal(label, spec.seen_unseen.background)
        part |= dict.fromkeys(strong_keys(stream.strong_views), image)
        if stream.boxes:
            box = tf.constant([crop // 4, crop // 4, crop // 2, crop // 2], tf.int32)
            part["boxes"] = tf.tile(box[None, None], [size[0], stream.strong_views, 1])
        if stream.image_labels != "none":
            part["image_label"] = tf.ones([size[0], spec.num_image_classes])
        batch[name] = part
    return batch


def model_config(arguments: argparse.Namespace, network: dict) -> ModelConfig:
    """Returns the network of the command line: DeepLabv3+ as its README has it, or DPT.

    Args:
      arguments: backbone; head, precision and recompute where they are not the usual ones.
      network: settings that go before these.
    """
    head = network.get("head", getattr(arguments, "head", "deeplab"))
    deeplab = {"atrous_rates": (6, 12, 18), "decoder_output_stride": (4,)}
    settings = {
        "model_variant": arguments.backbone,
        "head": head,
        "mixed_precision": getattr(arguments, "precision", "float32"),
        "recompute": getattr(arguments, "recompute", "none"),
        **({} if head == "dpt" else deeplab),
    }
    return ModelConfig(**(settings | network))


def make_trainer(arguments: argparse.Namespace, variant: Variant) -> Trainer:
    """Returns a fresh run; its iterator gives one batch again and again."""
    method = variant.method
    config = TrainConfig(
        method=method,
        train_batch_size=arguments.batch * variant.batch_factor,
        num_clones=1,
        **variant.train,
    )
    network = model_config(arguments, variant.network)
    settings, spec = METHODS[method].settings(**variant.method_settings), _spec(method)
    batch = _batch(method, config, settings, arguments.crop)
    dataset = tf.data.Dataset.from_tensors(batch).repeat()
    return Trainer(
        method=METHODS[method].load()(
            build_model=model_builder(network, spec, (arguments.crop, arguments.crop)),
            spec=spec,
            config=config,
            settings=settings,
        ),
        strategy=tf.distribute.get_strategy(),
        config=config,
        iterator=iter(dataset),
        mixed_precision=network.mixed_precision,
    )


def make_step(arguments: argparse.Namespace, variant: Variant):
    """Returns a function that does one step of a fresh run."""
    trainer = make_trainer(arguments, variant)

    def step() -> None:
        losses = trainer.step_function(trainer.iterator)["losses"]
        next(iter(losses.values())).numpy()

    return step


def main() -> None:
    arguments = _arguments()
    variants = {variant.name: variant for variant in VARIANTS[arguments.method]}
    steps = {name: make_step(arguments, variant) for name, variant in variants.items()}
    medians = median_times(steps, arguments.steps)
    print(
        f"{arguments.backbone}, crop {arguments.crop}, batch {arguments.batch} of each stream, "
        f"median of {arguments.steps} steps"
    )
    for name, seconds in medians.items():
        variant = variants[name]
        ratio = seconds / (variant.measure_factor * medians[variant.measure])
        times_what = f"{variant.measure_factor} x {variant.measure}"
        print(f"{name:<40} {seconds:7.3f} s/step   {ratio:5.2f} x ({times_what})")


if __name__ == "__main__":
    main()
