"""ZS3Net, step 2: a classifier over all classes, unseen ones learned from generated features.

The network comes from step 1 (`--method=spnet --head=deeplab`, training on seen classes) by
`--tf_initial_checkpoint`. Its last convolution is new, and all else stays as it is. A generator
makes features, the input of this convolution.

1. The generator turns a class's word vector and noise into the feature of a pixel. It learns to
   match the features of every seen class of every image (maximum mean discrepancy).
2. Images whose layout holds unseen classes get a feature map from the generator; the others keep
   their own.
3. The classifier learns from both; unseen classes weigh more.
4. With `graph_context` a second generator makes the features of regions from those around them; the
   classifier learns from these too.

The published code reads from the ground truth where unseen classes are: `--oracle_layout`. Without
it some images get a made layout (`ops.layouts`), in which unseen classes take the place of seen
ones.

Source: Bucher et al., "Zero-shot semantic segmentation", NeurIPS 2019; ZS3 specification 4. Ours:
the network is in inference mode while it makes features (theirs drew dropout and let batch norm
drift); the generator also learns from the seen classes of images with a made layout, whose features
are known; loss and rate do not change with the number of replicas.
"""

import dataclasses
import functools
from collections.abc import Collection

import tensorflow as tf

from tfseg.data.stream import Stream
from tfseg.errors import UserError
from tfseg.methods import zero_label
from tfseg.methods.base import Batch, Method, ParamGroup
from tfseg.methods.zs3net_parts.draws import GeneratorDraws, draw_for_generators
from tfseg.methods.zs3net_parts.flags import check_flags
from tfseg.methods.zs3net_parts.matching import MatchingGenerator
from tfseg.methods.zs3net_parts.pixels import PixelFeatures
from tfseg.methods.zs3net_parts.regions import Nodes, RegionFeatures
from tfseg.methods.zs3net_parts.scenes import Scenes, lay_out
from tfseg.models.layers.dropout import fold_seed
from tfseg.monitors import Monitors
from tfseg.ops import losses as loss_ops
from tfseg.ops.class_vectors import pixel_vectors
from tfseg.ops.resize import resize_nearest
from tfseg.settings.data import DataConfig
from tfseg.settings.methods.zs3net import ZS3NetConfig
from tfseg.settings.network import ModelConfig
from tfseg.settings.run import TrainConfig

# Settings of the network's training mode.
_UNUSED_NETWORK_FLAGS = ("fine_tune_batch_norm", "aspp_dropout_rate", "decoder_dropout_rates")


class ZS3Net(Method):
    """Generative moment matching for unseen classes, and a classifier on top of it."""

    Config = ZS3NetConfig

    def __init__(self, **options):
        super().__init__(**options)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        self.settings = self.complete_settings(self.settings, replicas)
        zero_label.check(self)
        check_flags(
            self.settings,
            self.config,
            self.spec,
            replicas=replicas,
            kernel_size=self._classifier_kernel.shape[0],
        )
        split = self.spec.seen_unseen
        self._seen, self._unseen = tuple(sorted(split.seen)), tuple(sorted(split.unseen))
        self._foreground = tuple(c for c in self._seen if c != split.background)
        self._vectors = tf.constant(self.spec.vectors.values, tf.float32)
        # Void has the word vector of class 0, as published.
        words = functools.partial(pixel_vectors, self._vectors, ignore_label=self.spec.ignore_label)
        self.generator = self._make_generator("generator")
        self.pixels = PixelFeatures(
            self.generator,
            words,
            self.settings,
            seen=self._seen,
            unseen=self._unseen,
            ignore_label=self.spec.ignore_label,
            fixed_shapes=self.config.jit_compile,
        )
        self.graph_generator = None
        if self.settings.graph_context:
            self.graph_generator = self._make_generator("graph_generator")
            self._regions = RegionFeatures(
                self.graph_generator,
                words,
                sampling_dropout=self.settings.sampling_dropout,
            )
        if self.settings.oracle_layout:
            print(
                "warning: --oracle_layout reads the places of unseen classes from their ground "
                "truth, as published; results are not zero-label",
                flush=True,
            )

    def build(self, build_model):
        """Makes the network; only its last convolution is trained."""
        model = build_model()
        if model.logits_layer is None:
            raise UserError(
                "zs3net trains a last convolution, which this network does not have.",
                where="--decoder_output_is_logits",
                received=True,
                fix="leave the flag out",
            )
        for layer in model.layers:
            layer.trainable = layer is model.logits_layer
        if self.settings.classifier_init == "uniform":
            seed = tf.constant([self.config.seed, 0], tf.int32)
            for i, variable in enumerate(model.logits_layer.trainable_variables):
                draw = tf.random.stateless_uniform(variable.shape, fold_seed(seed, i), alg="philox")
                variable.assign(draw)
        return model

    def _make_generator(self, name: str) -> MatchingGenerator:
        return MatchingGenerator(
            name,
            self.settings,
            seed=self.config.seed,
            inputs=self._vectors.shape[-1] + self._noise_dim,
            outputs=self._classifier_kernel.shape[2],
        )

    @property
    def _noise_dim(self) -> int:
        return self.settings.noise_dim or self._vectors.shape[-1]

    @property
    def _classifier_kernel(self) -> tf.Variable:
        return self.model.logits_layer.convolutions[0].kernel

    def check_initial_weights(self, random: Collection[str]) -> None:
        """Insists on a trained network and a new classifier.

        Raises:
          UserError: a variable of the network starts from random values and would never be trained,
            or the classifier does not start from random values.

        Source: specification 1.3.
        """
        classifier = {v.name.split(":")[0] for v in self.model.logits_layer.variables}
        frozen = sorted(set(random) - classifier)
        if frozen:
            raise UserError(
                "zs3net trains the last convolution alone; the network before it must be trained.",
                where="--tf_initial_checkpoint",
                received=f"{len(frozen)} variables that start from random values: "
                f"{', '.join(frozen[:3])} ...",
                accepted="a run of the same network, such as --method=spnet --head=deeplab",
                fix="--tf_initial_checkpoint=<its --train_logdir> "
                "--last_layers_contain_logits_only --noinitialize_last_layer",
            )
        if not classifier <= set(random):
            raise UserError(
                "The classifier of zs3net must start from random values: it has new classes.",
                where="--initialize_last_layer",
                received=True,
                fix="leave the flag out",
            )

    @classmethod
    def complete_settings(cls, settings: ZS3NetConfig, replicas: int) -> ZS3NetConfig:
        if settings.generator_updates is not None:
            return settings
        updates = "per_class" if replicas == 1 else "mean"
        return dataclasses.replace(settings, generator_updates=updates)

    @classmethod
    def network_config(cls, config: ModelConfig, settings: ZS3NetConfig) -> ModelConfig:
        """Names settings without effect: the network is always in inference mode."""
        default = {field.name: field.default for field in dataclasses.fields(config)}
        changed = [n for n in _UNUSED_NETWORK_FLAGS if getattr(config, n) != default[n]]
        if changed:
            print(
                f"note: {', '.join(f'--{name}' for name in changed)}: without effect, as zs3net "
                "trains no layer with dropout or batch norm",
                flush=True,
            )
        return super().network_config(config, settings)

    @classmethod
    def streams(
        cls, data: DataConfig, train: TrainConfig, settings: ZS3NetConfig
    ) -> dict[str, Stream]:
        return {
            "train": Stream(
                split=data.train_split,
                batch_size=train.train_batch_size,
                labels="required" if settings.oracle_layout else "seen",
            )
        }

    # The step ------------------------------------------------------------------------------------

    def losses(
        self, batch: Batch, step: tf.Tensor, seed: tf.Tensor, monitors: Monitors
    ) -> dict[str, tf.Tensor]:
        scenes = self.scenes(batch, seed)
        draws = self.draws(scenes, seed)
        discrepancies, active, features = self.pixels.matched(scenes, draws)
        label = scenes.target if self.config.upsample_logits else scenes.layout
        losses = {
            "segmentation": self.classifier_loss(tf.stop_gradient(features), label)
            / self._batch_size,
            "generator": _mean(discrepancies, active),
        }
        if self.graph_generator is not None:
            nodes = self.nodes(scenes, draws)
            losses["graph_segmentation"] = self.settings.graph_weight * self.node_loss(nodes)
            losses["graph_generator"] = _mean(nodes.losses, nodes.trained)
        self._monitor(monitors, batch, scenes)
        return losses

    @property
    def _batch_size(self) -> float:
        # Published: the mean loss is divided by the batch once more, so that the rate fits.
        return float(self.config.train_batch_size)

    def scenes(self, batch: Batch, seed: tf.Tensor) -> Scenes:
        """Returns features and layouts of a batch (specification 4.2, 4.3)."""
        train = batch["train"]
        features = self._features(train["image"])
        label = self._visible(train["label"]) if self.settings.oracle_layout else train["label"]
        return lay_out(
            features,
            label,
            seed,
            self.settings,
            unseen=self._unseen,
            foreground=self._foreground,
        )

    def _features(self, image: tf.Tensor) -> tf.Tensor:
        ends = self.model.decode(self.model.encode(image, training=False), training=False)
        return tf.stop_gradient(tf.cast(ends["features"], tf.float32))

    def _visible(self, label: tf.Tensor) -> tf.Tensor:
        """Returns labels of seen and unseen classes, of those that stand in the records."""
        table = self.spec.seen_unseen.evaluation_table(
            self.spec.num_classes, self.spec.ignore_label
        )
        return tf.gather(tf.constant(table, tf.int32), label)

    def draws(self, scenes: Scenes, seed: tf.Tensor) -> GeneratorDraws:
        """Draws noise, dropout and the pixels that are compared."""
        return draw_for_generators(
            tuple(scenes.label.shape),
            seed,
            self.settings,
            num_seen=len(self._seen),
            noise_dim=self._noise_dim,
        )

    def nodes(self, scenes: Scenes, draws: GeneratorDraws) -> Nodes:
        """Returns the regions of all layouts; trains their generator as that of pixels."""
        return self._regions.nodes(
            scenes.layout,
            scenes.features,
            scenes.synthetic,
            noise=draws.node_noise,
            keep=draws.node_keep,
        )

    # The classifier ------------------------------------------------------------------------------

    def classify(self, features: tf.Tensor) -> tf.Tensor:
        """Returns logits, float32 [N, h, w, C]; classes that take no part are far below the rest.

        Args:
          features: float32 [N, h, w, D].
        """
        return zero_label.only(self.model.logits_layer(features), self.spec.seen_unseen.visible)

    def classifier_loss(self, features: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
        """Returns the weighted cross entropy of features, a scalar (specification 4.4).

        Seen classes weigh as --label_weights says (ours; 1 as published).

        Args:
          features: float32 [N, h, w, D].
          label: int32 [N, H, W], at any size.
        """
        of_class = self.config.label_weights or (1.0,) * self.spec.num_classes
        weights = [
            self.settings.unseen_weight if c in self._unseen else weight
            for c, weight in enumerate(of_class)
        ]
        loss = loss_ops.segmentation_loss(
            self.classify(features),
            label,
            ignore_label=self.spec.ignore_label,
            class_weights=weights,
            denominator="weights",
            over_replicas=self.over_replicas,
        )
        return loss_ops.focal_of_mean(loss) if self.settings.loss_type == "focal" else loss

    def node_loss(self, nodes: Nodes) -> tf.Tensor:
        """Returns the weighted cross entropy of regions, a scalar (specification 4.5)."""
        # A node that is ignored, as there may be no others.
        features = tf.pad(nodes.features, [[0, 1], [0, 0]])
        label = tf.pad(nodes.label, [[0, 1]], constant_values=self.spec.ignore_label)
        return self.classifier_loss(features[None, :, None], label[None, :, None])

    def param_groups(self) -> list[ParamGroup]:
        """Returns the classifier, all of which decays, and generators that learn once a step.

        Source: specification 5.
        """
        groups = [
            ParamGroup(
                name="classifier",
                variables=self.model.trainable_variables,
                lr_multiplier=self.settings.new_layers_learning_rate_multiplier,
                weight_decay=self.config.weight_decay,
            )
        ]
        return groups + [
            ParamGroup(
                name=generator.name,
                variables=generator.weights,
                optimizer="adam",
                schedule=self.settings.generator_learning_rate,
            )
            for generator in (self.generator, self.graph_generator)
            if generator is not None and not generator.sequential
        ]

    # What a user watches -------------------------------------------------------------------------

    def _monitor(self, monitors: Monitors, batch: Batch, scenes: Scenes) -> None:
        """Measures the classifier on real features against masks that no loss sees."""
        truth = resize_nearest(self._truth(batch), _size(scenes.features))
        prediction = tf.argmax(self.classify(scenes.features), -1, output_type=tf.int32)
        known = tf.cast(truth != self.spec.ignore_label, tf.float32)
        monitors.confusion(
            "real_features",
            truth,
            prediction,
            num_classes=self.spec.num_classes,
            weight=known,
        )
        unseen = tf.cast(zero_label.among(truth, self._unseen), tf.float32)
        found = unseen * tf.cast(prediction == truth, tf.float32)
        monitors.share("unseen_recall", tf.reduce_sum(found), tf.reduce_sum(unseen))
        synthetic = tf.cast(scenes.synthetic, tf.float32)
        monitors.share(
            "synthetic_images", tf.reduce_sum(synthetic), tf.cast(tf.size(synthetic), tf.float32)
        )

    def _truth(self, batch: Batch) -> tf.Tensor:
        train = batch["train"]
        return (
            self._visible(train["label"])
            if self.settings.oracle_layout
            else (train["hidden_label"])
        )

    def panels(self, batch: Batch) -> dict[str, tf.Tensor]:
        """Returns an image, the prediction for it, a layout that takes its place, and the truth."""
        scenes = self.scenes(batch, tf.constant([self.config.seed, 0], tf.int32))
        return {
            "image": batch["train"]["image"],
            "prediction": tf.argmax(self.classify(scenes.features), -1, output_type=tf.int32),
            "layout": scenes.layout,
            "truth": self._truth(batch),
        }


def _size(x: tf.Tensor) -> tuple[int, int]:
    return tuple(x.shape[1:3])


def _mean(losses: tf.Tensor, counted: tf.Tensor) -> tf.Tensor:
    return loss_ops.safe_divide(tf.reduce_sum(losses), tf.reduce_sum(tf.cast(counted, tf.float32)))
