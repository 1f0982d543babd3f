"""No zero-label method learns where unseen classes are, how often, or which is which.

The same images are trained on with three sets of masks: as they are; with every pixel of an unseen
class made background; with the ids of the unseen classes swapped. Losses and weights must be the
same to the last bit. What monitors measure must differ, for they do see the masks: otherwise the
three sets would not differ where it matters, and this test would test nothing.
"""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.small_split import write_split
from tests.test_methods import SMALL
from tests.toy import ToyBackbone
from tfseg.data.class_embeddings import ClassVectors
from tfseg.data.class_splits import ClassSplit
from tfseg.data.specs import DatasetSpec
from tfseg.models import BACKBONES, model_builder
from tfseg.runs.training_data import TrainingData
from tfseg.settings.data import DataConfig
from tfseg.settings.methods import METHODS
from tfseg.settings.methods.zero_label import ZeroLabelConfig
from tfseg.settings.network import ModelConfig
from tfseg.settings.run import TrainConfig
from tfseg.training.trainer import Trainer

STEPS = 4
CROP = (33, 33)
SPEC = DatasetSpec("toy", ("background", "cat", "dog", "cow", "horse"))
UNSEEN = (3, 4)
SPLITS = {
    "background seen": ClassSplit("x", (0, 1, 2), UNSEEN, background=0),
    "background unlabelled": ClassSplit("x", (1, 2), UNSEEN),
}
BOTH = tuple(SPLITS)
# What masks become; every entry is a table of label values.
CHANGES = {
    "as they are": np.arange(256),
    "unseen classes are background": np.array([0, 1, 2, 0, 0, *range(5, 256)]),
    "unseen classes are swapped": np.array([0, 1, 2, 4, 3, *range(5, 256)]),
}


@dataclasses.dataclass(frozen=True)
class Regime:
    """A method with settings, and the splits on which it is tested."""

    method: str
    settings: dict = dataclasses.field(default_factory=dict)
    head: str = "projection"
    splits: tuple[str, ...] = BOTH

    def __str__(self):
        return " ".join([self.method, self.head, *map(str, self.settings.values())])


ZS5 = {
    "generator_classes": "all",
    "view_scales": (),
    "mirror_views": False,
    "pseudo_label_share": 50.0,
    "teacher_seen_bias": 0.2,
}
# Where background is seen.
MAY_IGNORE = {"disagreeing": "ignore", "background_loss": "with_unseen", "min_confidence": 0.51}
# Other layouts than the default.
BALANCED = {"layout": "balanced", "generated_pixels": "unseen"}
REGIMES = (
    Regime("spnet"),
    Regime("spnet", head="deeplab", splits=BOTH[:1]),
    Regime("strict", {"rounds": 2, "view_scales": (1.5,)}),
    Regime("strict", {"pseudo_label_void": True, "view_scales": ()}, splits=BOTH[1:]),
    Regime("strict", {"teacher": "ema", **MAY_IGNORE}, splits=BOTH[:1]),
    Regime("strict", {"rounds": 2, "disagreeing": "ignore", **ZS5}, "deeplab", splits=BOTH[:1]),
    Regime("strict", ZS5, "deeplab", splits=BOTH[1:]),
    Regime("zs3net", {"generator_updates": "per_class"}, head="deeplab", splits=BOTH[:1]),
    Regime("zs3net", {"generator_updates": "mean", **BALANCED}, head="deeplab"),
    Regime("zs3net", {"graph_context": True}, head="deeplab", splits=BOTH[:1]),
)
# One of each method, of the two that read pseudo labels or layouts from hidden pixels at once.
_EVERY_TIME = (REGIMES[0], REGIMES[2], REGIMES[5], REGIMES[8])
CASES = [
    pytest.param(
        regime,
        split,
        id=f"{regime}, {split}",
        marks=[] if regime in _EVERY_TIME and split is regime.splits[0] else pytest.mark.nightly,
    )
    for regime in REGIMES
    for split in regime.splits
]


def blocks(rng, classes, size=(40, 44)):
    """Returns a mask of squares of a few classes, with a rim of void between some of them."""
    coarse = rng.choice(classes, (5, 6))
    mask = np.kron(coarse, np.ones((8, 8), int))[: size[0], : size[1]].astype(np.uint8)
    mask[:, 16:18] = 255
    return mask


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same images with every kind of mask, by its name."""
    rng = np.random.default_rng(0)
    masks = [blocks(rng, classes) for classes in ((0, 1, 3), (0, 2, 4), (0, 1, 3, 4), (0, 1, 2))]
    images = [
        (rng.integers(0, 60, (*mask.shape, 3)) + 40 * (mask[..., None] % 5)).astype(np.uint8)
        for mask in masks
    ]
    paths = {}
    for name, table in CHANGES.items():
        paths[name] = str(tmp_path_factory.mktemp("records"))
        changed = [table[mask].astype(np.uint8) for mask in masks]
        write_split(paths[name], images, changed, split="train")
    return paths


@pytest.fixture(autouse=True)
def toy_backbone(monkeypatch):
    monkeypatch.setitem(BACKBONES, "toy", ToyBackbone)


class Run:
    """A method on the pipeline's batches that starts anew with every set of masks.

    Its step is traced once: all variables are set back instead.
    """

    def __init__(self, regime, spec, folder):
        self.spec = spec
        self.config = TrainConfig(
            method=regime.method,
            train_batch_size=2,
            training_number_of_steps=STEPS,
            base_learning_rate=0.05,
            initialize_last_layer=True,
        )
        self.settings = METHODS[regime.method].settings(**regime.settings)
        self.strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
        method_class = METHODS[regime.method].load()
        model_config = ModelConfig(**SMALL, head=regime.head, batch_norm_momentum=0.9)
        model_config = method_class.network_config(model_config, self.settings)
        self.streams = method_class.streams(self.data_config(folder), self.config, self.settings)
        with self.strategy.scope():
            method = method_class(
                build_model=model_builder(model_config, spec, CROP),
                spec=spec,
                config=self.config,
                settings=self.settings,
            )
        self.trainer = Trainer(
            method=method, strategy=self.strategy, config=self.config, iterator=None
        )
        networks = [v for network in method.networks().values() for v in network.variables]
        self.variables = [*self.trainer.state().values(), *networks]
        self.start = [v.numpy() for v in self.variables]

    def data_config(self, folder):
        return DataConfig(
            dataset_dir=folder, train_split="train", train_crop_size=CROP, data_threads=2
        )

    def measure(self, folder):
        """Trains on a folder of records; returns losses of every step, weights and figures."""
        for variable, value in zip(self.variables, self.start):
            variable.assign(value)
        config = self.data_config(folder)
        data = TrainingData(self.streams, self.spec, config, self.config, self.strategy)
        self.trainer.iterator = data.iterator(0)
        intervals = [self.trainer.train(1) for _ in range(STEPS)]
        return (
            [interval.losses for interval in intervals],
            [v.numpy() for v in self.variables],
            [interval.figures for interval in intervals],
        )


def spec_of(split):
    vectors = np.random.default_rng(1).normal(size=(SPEC.num_classes, 6)).astype(np.float32)
    return dataclasses.replace(
        SPEC, seen_unseen=SPLITS[split], vectors=ClassVectors(vectors, "x", "x", "none")
    )


@pytest.mark.parametrize("regime, split", CASES)
def test_training_is_the_same_whatever_unseen_pixels_are(folders, regime, split):
    run = Run(regime, spec_of(split), folders["as they are"])
    losses, weights, figures = run.measure(folders["as they are"])
    assert any((a != b).any() for a, b in zip(weights, run.start))
    for name in list(CHANGES)[1:]:
        other_losses, other_weights, other_figures = run.measure(folders[name])
        assert losses == other_losses, name
        for variable, a, b in zip(run.variables, weights, other_weights):
            np.testing.assert_array_equal(a, b, err_msg=f"{name}: {variable.name}")
        assert figures != other_figures, name


def test_a_method_that_sees_all_masks_is_found_out(folders):
    run = Run(Regime("supervised", head="deeplab"), spec_of(BOTH[0]), folders["as they are"])
    losses, *_ = run.measure(folders["as they are"])
    # What is not masks repeats to the last bit.
    assert losses == run.measure(folders["as they are"])[0]
    for name in list(CHANGES)[1:]:
        assert losses != run.measure(folders[name])[0]


def test_every_zero_label_method_is_tested():
    methods = {name for name, m in METHODS.items() if issubclass(m.settings, ZeroLabelConfig)}
    assert methods == {case.values[0].method for case in CASES}
