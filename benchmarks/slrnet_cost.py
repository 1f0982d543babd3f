"""What the low-rank factorisation and PAMR cost in a training step of SLRNet: time and memory.

    python benchmarks/slrnet_cost.py --backbone=wide_resnet38 --crop=321 --batch=1 --steps=3

Times: the two parts alone (the factorisation forward and backward, PAMR forward, as it has no
gradient) at the sizes of the step, taking turns with whole steps in one process, because their
share is less than what a shared machine drifts. Memory: peak of a process that does steps, with the
parts and without, one after the other.
"""

import argparse
import resource
import subprocess
import sys

import tfseg  # noqa: F401  (selects Keras 2 before TensorFlow is imported)

import numpy as np
import tensorflow as tf
from turns import median_times

from tfseg.data.specs import DATASETS
from tfseg.methods.slrnet import SLRNet
from tfseg.models import BACKBONES, model_builder
from tfseg.models.heads.factorisation import initial_bases
from tfseg.ops import pamr
from tfseg.settings.methods.slrnet import SLRNetConfig
from tfseg.settings.network import ModelConfig
from tfseg.settings.run import TrainConfig
from tfseg.training.trainer import Trainer

SPEC = DATASETS["pascal_voc_seg"]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="wide_resnet38", choices=list(BACKBONES))
    parser.add_argument("--crop", type=int, default=321, help="pixels, both sides")
    parser.add_argument("--batch", type=int, default=1, help="images")
    parser.add_argument("--steps", type=int, default=3, help="timed steps")
    parser.add_argument("--peak", choices=("with", "without"), help=argparse.SUPPRESS)
    return parser.parse_args()


def _trainer(arguments: argparse.Namespace) -> Trainer:
    """Returns a trainer of the published network on a fixed batch."""
    crop, batch = (arguments.crop, arguments.crop), arguments.batch
    settings = SLRNetConfig(pretrain_steps=0)
    model_config = ModelConfig(
        model_variant=arguments.backbone,
        output_stride=8,
        atrous_rates=(12, 24, 36),
        decoder_output_stride=(4,),
        aspp_with_separable_conv=False,
        decoder_use_separable_conv=False,
        aspp_dropout_rate=0.5,
    )
    config = TrainConfig(method="slrnet", train_batch_size=batch, num_clones=1)
    method = SLRNet(
        build_model=model_builder(SLRNet.network_config(model_config, settings), SPEC, crop),
        spec=SPEC,
        config=config,
        settings=settings,
    )
    rng = np.random.default_rng(0)
    weak = {
        "image": tf.constant(rng.uniform(0, 255, (batch, *crop, 3)), tf.float32),
        "image_label": tf.ones([batch, SPEC.num_image_classes]),
        "hidden_label": tf.zeros((batch, *crop), tf.int32),
        "has_label": tf.zeros([batch], tf.bool),
        "valid": tf.ones((batch, *crop)),
    }
    dataset = tf.data.Dataset.from_tensors({"weak": weak}).repeat()
    return Trainer(
        method=method,
        strategy=tf.distribute.get_strategy(),
        config=config,
        iterator=iter(dataset),
    )


def _parts(trainer: Trainer, arguments: argparse.Namespace):
    """Returns the two parts alone, each a function that waits for its result."""
    low_rank = trainer.method.model.head.low_rank
    first = (arguments.crop + 3) // 4
    second = (arguments.crop // 2 + 3) // 4
    channels = low_rank.transforms[0].kernel.shape[2]

    def random(side: int, depth: int) -> tf.Tensor:
        return tf.random.normal([arguments.batch, side, side, depth])

    views = [random(first, channels), random(second, channels)]
    logits = random(first, SPEC.num_classes)
    image, masks = tf.nn.sigmoid(random(arguments.crop, 3)), tf.nn.softmax(logits)

    @tf.function(autograph=False)
    def factorise():
        bases = initial_bases(logits, views[0])
        with tf.GradientTape() as tape:
            tape.watch(views)
            features, codes, _ = low_rank(views, bases)
            total = tf.add_n([tf.reduce_sum(x) for x in (*features, *codes)])
        gradients = tape.gradient(total, [*views, *low_rank.trainable_variables])
        return tf.add_n([tf.reduce_sum(g) for g in gradients])

    @tf.function(autograph=False)
    def refine():
        return tf.reduce_sum(pamr.refine(image, masks))

    return {"factorisation": lambda: factorise().numpy(), "PAMR": lambda: refine().numpy()}


def _remove_parts(trainer: Trainer) -> None:
    """Puts the identity in the place of both parts."""
    pamr.refine = lambda image, masks, **options: masks
    head = trainer.method.model.head

    def identity(views, bases):
        codes = [tf.ones_like(view[..., : SPEC.num_classes]) for view in views]
        return list(views), codes, bases

    # Not an assignment: Keras would look for the layer's variables.
    object.__setattr__(head, "low_rank", identity)


def _step(trainer: Trainer):
    def step() -> None:
        losses = trainer.step_function(trainer.iterator)["losses"]
        next(iter(losses.values())).numpy()

    return step


def _print_peak(arguments: argparse.Namespace) -> None:
    """Does two steps and prints the peak memory of this process in MiB."""
    trainer = _trainer(arguments)
    if arguments.peak == "without":
        _remove_parts(trainer)
    step = _step(trainer)
    for _ in range(2):
        step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def _peak(kind: str) -> int:
    """Returns the peak memory, MiB, of a process that does steps with the parts or without."""
    command = [sys.executable, *sys.argv, f"--peak={kind}"]
    return int(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]
    )


def main() -> None:
    arguments = _arguments()
    if arguments.peak:
        return _print_peak(arguments)
    trainer = _trainer(arguments)
    work = {"step": _step(trainer), **_parts(trainer, arguments)}
    medians = median_times(work, arguments.steps)
    print(
        f"{arguments.backbone}, crop {arguments.crop}, batch {arguments.batch}, "
        f"median of {arguments.steps} steps"
    )
    for name, seconds in medians.items():
        print(f"{name:<16} {seconds:8.3f} s   {seconds / medians['step']:7.2%} of a step")
    together = sum(seconds for name, seconds in medians.items() if name != "step")
    print(f"{'both parts':<16} {together:8.3f} s   {together / medians['step']:7.2%} of a step")
    del trainer, work
    peaks = {kind: _peak(kind) for kind in ("with", "without")}
    share = peaks["with"] / peaks["without"] - 1
    print(
        f"peak memory {peaks['with'] / 1024:.2f} GiB, without both parts "
        f"{peaks['without'] / 1024:.2f} GiB: {share:+.2%}"
    )


if __name__ == "__main__":
    main()
