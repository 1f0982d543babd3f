"""Settings of ZS3Net."""

import dataclasses

from tfseg.errors import UserError
from tfseg.settings.methods.zero_label import ZeroLabelConfig
from tfseg.settings.option import NEVER, option


@dataclasses.dataclass(frozen=True)
class ZS3NetConfig(ZeroLabelConfig):
    """ZS3Net's second step (ZS3 specification 4): features of unseen classes are generated."""

    oracle_layout: bool = option(
        False,
        "LEAK: take the layouts of unseen classes from their ground truth, as published. false: "
        "make them from layouts of seen classes.",
        may_differ=NEVER,
    )
    layout: str = option(
        "rename",
        "Without --oracle_layout: rename gives the pixels of one seen class of an image to an "
        "unseen one; balanced does so for half of its seen classes, rounded up.",
        choices=("rename", "balanced"),
        needs="oracle_layout=false",
    )
    synthetic_share: float = option(
        0.5,
        "Without --oracle_layout: share of images with a made layout.",
        limits=(0, 1),
        needs="oracle_layout=false",
    )
    generated_pixels: str = option(
        "all",
        "Pixels of an image with a made layout whose features are generated: all (published), or "
        "unseen (those of unseen classes).",
        choices=("all", "unseen"),
    )
    generator_updates: str | None = option(
        None,
        "Updates of the generator in a step. per_class: one for every class of every image, one "
        "after the other, as published. mean: one, by the mean of their losses. None: per_class on "
        "one replica, else mean.",
        choices=("per_class", "mean"),
        may_differ=NEVER,
    )
    generator_hidden: int = option(256, "Hidden units of the generator; 0: none.", limits=(0, None))
    noise_dim: int | None = option(
        None, "Length of the noise; None: that of the word vectors.", limits=(1, None)
    )
    noise: str = option("uniform", "Distribution of the noise.", choices=("uniform", "gaussian"))
    generator_samples: int = option(
        128, "Pixels of a class that are compared in one update.", limits=(2, None)
    )
    generator_learning_rate: float = option(2e-4, "Adam's rate of the generator.", limits=(0, None))
    mmd_bandwidths: tuple[float, ...] = option(
        (2.0, 5.0, 10.0, 20.0, 40.0, 80.0), "Widths of the kernels that compare features."
    )
    mmd_weights: str = option(
        "right",
        "Estimator of the maximum mean discrepancy: right, or published, which is wrong if the two "
        "sets differ in size.",
        choices=("right", "published"),
    )
    sampling_dropout: bool = option(
        True, "Dropout also in features that the generator makes for the classifier, as published."
    )
    unseen_weight: float = option(
        100.0, "Weight of unseen classes in the classifier's loss.", limits=(0, None)
    )
    loss_type: str = option(
        "ce",
        "The classifier's loss: ce (cross entropy), or focal, computed from the mean cross entropy "
        "of the batch.",
        choices=("ce", "focal"),
    )
    classifier_init: str = option(
        "normal", "Weights with which the new classifier starts.", choices=("normal", "uniform")
    )
    graph_context: bool = option(
        False, "Generate features along the graph of neighbouring regions (ZS3Net with context)."
    )
    graph_weight: float = option(
        0.1,
        "With --graph_context: weight of the classifier's loss on the features along the graph.",
        limits=(0, None),
        needs="graph_context",
    )

    def __post_init__(self):
        if not self.mmd_bandwidths or min(self.mmd_bandwidths) <= 0:
            raise UserError(
                "--mmd_bandwidths must be positive numbers.",
                where="--mmd_bandwidths",
                received=", ".join(map(str, self.mmd_bandwidths)),
                accepted="published: 2,5,10,20,40,80",
            )
