"""ZS3Net, step 2: a classifier over all classes, unseen ones learned from generated features.

The network comes from step 1 (`--method=spnet --head=deeplab`, training on seen classes) by
`--tf_initial_checkpoint`, and stays as it is but for the last convolution, which is new. The input
of that convolution, features, is what is generated.

1. A generator turns a class's word vector and noise into the feature of a pixel. It learns to match
   the features of every seen class of every image (maximum mean discrepancy).
2. Images whose layout holds unseen classes get a feature map from the generator; the others keep
   their own.
3. The classifier learns from both, unseen classes weighing more.
4. With `graph_context` a second generator makes the features of regions from those around them; the
   classifier learns from these too.

Where unseen classes are, the published code reads from their ground truth: `--oracle_layout`.
Without it some images get a made layout (`ops.layouts`), in which unseen classes stand where seen
ones are.

Source: Bucher et al., "Zero-shot semantic segmentation", NeurIPS 2019; ZS3 specification 4. Ours:
the network is in inference mode while it makes features (theirs drew dropout and let batch norm
drift); the generator also learns from images with a made layout, of whose seen classes it knows the
features; loss and rate do not change with the number of replicas.
"""

import dataclasses
from collections.abc import Collection

import numpy as np
import tensorflow as tf

from tfseg.data.stream import Stream
from tfseg.errors import UserError
from tfseg.methods import zero_label
from tfseg.methods.base import Batch, Method, ParamGroup
from tfseg.methods.zs3net_parts.matching import MatchingGenerator
from tfseg.methods.zs3net_parts.regions import Nodes, RegionFeatures
from tfseg.models import gmmn
from tfseg.models.layers.dropout import fold_seed
from tfseg.monitors import Monitors
from tfseg.ops import adam, layouts
from tfseg.ops import losses as loss_ops
from tfseg.ops.class_vectors import pixel_vectors
from tfseg.ops.resize import resize_nearest
from tfseg.settings.data import DataConfig
from tfseg.settings.methods import ZS3NetConfig
from tfseg.settings.network import ModelConfig
from tfseg.settings.run import TrainConfig

# Settings of the network's training mode.
_UNUSED_NETWORK_FLAGS = ("fine_tune_batch_norm", "aspp_dropout_rate", "decoder_dropout_rates")
_LAYOUTS = {"rename": layouts.rename, "balanced": layouts.balanced}
# What chance decides; each draws for itself.
_MADE, _LAYOUT, _NOISE, _KEEP, _PIXEL, _NODE_NOISE, _NODE_KEEP = range(7)


@dataclasses.dataclass(frozen=True)
class Scenes:
    """The images of a step, as the classifier is to see them.

    Attributes:
      features: float32 [N, h, w, D], without gradient.
      label: int32 [N, h, w], what is known of the image, at the size of its features.
      layout: int32 [N, h, w], the same, or what takes its place.
      target: int32 [N, H, W], the layout at the size of the image.
      synthetic: bool [N], whether the layout holds unseen classes: features are generated.
    """

    features: tf.Tensor
    label: tf.Tensor
    layout: tf.Tensor
    target: tf.Tensor
    synthetic: tf.Tensor


@dataclasses.dataclass(frozen=True)
class Draws:
    """What chance gives the generators in a step.

    Attributes:
      noise: float32 [N, h, w, Z].
      keep: bool [N, h, w, hidden units], what dropout leaves; None without hidden units.
      pixel: float32 [N, S, generator_samples] in [0, 1), for each of S seen classes: which of the
        class's pixels are compared, as a share of their number.
      node_noise, node_keep: as noise and keep, for regions, at their first pixels; or None.
    """

    noise: tf.Tensor
    keep: tf.Tensor | None
    pixel: tf.Tensor
    node_noise: tf.Tensor | None = None
    node_keep: tf.Tensor | None = None


class ZS3Net(Method):
    """Generative moment matching for unseen classes, and a classifier on top of it."""

    Config = ZS3NetConfig

    def __init__(self, **options):
        super().__init__(**options)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        self.settings = self.complete_settings(self.settings, replicas)
        self._check(replicas)
        split = self.spec.seen_unseen
        self._seen, self._unseen = tuple(sorted(split.seen)), tuple(sorted(split.unseen))
        self._foreground = tuple(c for c in self._seen if c != split.background)
        self._vectors = tf.constant(self.spec.vectors.values, tf.float32)
        self.generator = self._make_generator("generator")
        self.graph_generator = None
        if self.settings.graph_context:
            self.graph_generator = self._make_generator("graph_generator")
            self._regions = RegionFeatures(
                self.graph_generator,
                self._words,
                sampling_dropout=self.settings.sampling_dropout,
            )
        if self.settings.oracle_layout:
            print(
                "warning: --oracle_layout: where the unseen classes are is read from their ground "
                "truth, as published; results are not zero-label",
                flush=True,
            )

    def build(self, build_model):
        """Makes the network; only its last convolution is trained."""
        model = build_model()
        if model.logits_layer is None:
            raise UserError(
                "zs3net needs a last convolution of its own, on features that it can generate.",
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

    def _check(self, replicas: int) -> None:
        zero_label.check(self)
        if self.spec.vectors is None:
            raise UserError(
                "zs3net needs word vectors of the classes.",
                where="--class_embeddings",
                fix="add --class_embeddings=FILE.npz; tfrecords_tools/build_class_embeddings.py "
                "makes such files",
            )
        if self.settings.generator_updates == "per_class" and replicas > 1:
            raise UserError(
                "Updates one after the other need all images in one place.",
                where="--generator_updates=per_class",
                received=f"{replicas} replicas",
                accepted="--generator_updates=mean, or one replica",
            )
        if self.settings.graph_context:
            self._check_graph()

    def _check_graph(self) -> None:
        if self.config.jit_compile:
            raise UserError(
                "Region graphs are made outside of compiled code.",
                where="--jit_compile",
                received="--graph_context",
                fix="leave out one of the two",
            )
        if not self.settings.generator_hidden:
            raise UserError(
                "The generator of --graph_context has two layers.",
                where="--generator_hidden",
                received=0,
                accepted="at least 1; published: 256",
            )
        if self._classifier_kernel.shape[0] != 1:
            raise UserError(
                "The features of regions can be classified by a 1x1 convolution alone.",
                where="--logits_kernel_size",
                received=self._classifier_kernel.shape[0],
                accepted=1,
            )

    def check_initial_weights(self, random: Collection[str]) -> None:
        """Insists on a trained network and a new classifier.

        Raises:
          UserError: something of the network starts from random values and would stay so; or the
            classifier does not.

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
                "The classifier of zs3net is new, for it has new classes.",
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
        """Says which settings are not heeded, as the network is in inference mode throughout."""
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
        features, generator_loss = self.mixed_features(scenes, draws)
        label = scenes.target if self.config.upsample_logits else scenes.layout
        losses = {
            "segmentation": self.classifier_loss(features, label) / self._batch_size,
            "generator": generator_loss,
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
        train, settings = batch["train"], self.settings
        features = self._features(train["image"])
        label = self._visible(train["label"]) if settings.oracle_layout else train["label"]
        layout = label
        if not settings.oracle_layout:
            made = _LAYOUTS[settings.layout](
                label, fold_seed(seed, _LAYOUT), unseen=self._unseen, foreground=self._foreground
            )
            draw = tf.random.stateless_uniform(
                label.shape[:1], fold_seed(seed, _MADE), alg="philox"
            )
            layout = tf.where((draw < settings.synthetic_share)[:, None, None], made, label)
        small, small_layout = (resize_nearest(x, _size(features)) for x in (label, layout))
        synthetic = tf.reduce_any(self._is_unseen(small_layout), [1, 2])
        if not settings.oracle_layout:
            # A made layout that is gone at this size is taken back.
            layout = tf.where(synthetic[:, None, None], layout, label)
        return Scenes(features, small, small_layout, layout, synthetic)

    def _features(self, image: tf.Tensor) -> tf.Tensor:
        ends = self.model.decode(self.model.encode(image, training=False), training=False)
        return tf.stop_gradient(tf.cast(ends["features"], tf.float32))

    def _visible(self, label: tf.Tensor) -> tf.Tensor:
        """Returns labels of seen and unseen classes, of those that stand in the records."""
        table = self.spec.seen_unseen.evaluation_table(
            self.spec.num_classes, self.spec.ignore_label
        )
        return tf.gather(tf.constant(table, tf.int32), label)

    def _is_unseen(self, label: tf.Tensor) -> tf.Tensor:
        return zero_label.among(label, self._unseen)

    def draws(self, scenes: Scenes, seed: tf.Tensor) -> Draws:
        """Draws noise, dropout and the pixels that are compared."""
        images, height, width, _ = scenes.features.shape
        settings = self.settings

        def noise(use: int) -> tf.Tensor:
            shape = [images, height, width, self._noise_dim]
            draw = {"seed": fold_seed(seed, use), "alg": "philox"}
            if settings.noise == "gaussian":
                return tf.random.stateless_normal(shape, **draw)
            return tf.random.stateless_uniform(shape, **draw)

        def keep(use: int) -> tf.Tensor | None:
            if not settings.generator_hidden:
                return None
            shape = [images, height, width, settings.generator_hidden]
            draw = tf.random.stateless_uniform(shape, fold_seed(seed, use), alg="philox")
            return draw >= gmmn.DROPOUT_RATE

        pixel = tf.random.stateless_uniform(
            [images, len(self._seen), settings.generator_samples],
            fold_seed(seed, _PIXEL),
            alg="philox",
        )
        graph = self.graph_generator is not None
        return Draws(
            noise=noise(_NOISE),
            keep=keep(_KEEP),
            pixel=pixel,
            node_noise=noise(_NODE_NOISE) if graph else None,
            node_keep=keep(_NODE_KEEP) if graph else None,
        )

    # Features of pixels --------------------------------------------------------------------------

    def mixed_features(self, scenes: Scenes, draws: Draws) -> tuple[tf.Tensor, tf.Tensor]:
        """Trains the generator, where that is done inside the step, and returns what it makes.

        Returns:
          Features for the classifier, float32 [N, h, w, D], and the generator's mean loss, a
          scalar, which has a gradient with `generator_updates='mean'`.

        Source: specification 4.2, 4.3.
        """
        losses, active, features = self.matched_features(scenes, draws)
        return tf.stop_gradient(features), _mean(losses, active)

    def matched_features(
        self, scenes: Scenes, draws: Draws
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns the loss of every image and seen class, whether there is one, and the features.

        Returns:
          (float32 [N, S], 0 where there is none; bool [N, S]; float32 [N, h, w, D]).
        """
        places, active = self._places(scenes, draws)
        if not self.generator.sequential:
            made = [
                self._made(self.generator.weights, scenes, draws, i)
                for i in range(scenes.label.shape[0])
            ]
            return self._all_at_once(scenes, draws, places, active), active, tf.stack(made)
        state = self.generator.state()
        losses, made = [], []
        for i in range(scenes.label.shape[0]):
            # What is made of an image does not know of its own updates.
            made.append(self._made(state[0], scenes, draws, i))
            state, of_image = self._one_by_one(state, scenes, draws, places, active[i], i)
            losses.append(of_image)
        self.generator.assign(state)
        return tf.stack(losses), active, tf.stack(made)

    def _places(self, scenes: Scenes, draws: Draws) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns which pixels are compared, int32 [N, S, samples], and where there are any."""
        images = scenes.label.shape[0]
        label = tf.reshape(scenes.label, [images, 1, -1])
        number = tf.cumsum(tf.cast(label == tf.constant(self._seen)[:, None], tf.int32), axis=-1)
        count = number[..., -1]
        limit = tf.cast(count, tf.float32)[..., None]
        chosen = tf.minimum(tf.cast(draws.pixel * limit, tf.int32), count[..., None] - 1) + 1
        places = tf.minimum(tf.searchsorted(number, chosen), label.shape[-1] - 1)
        real = ~tf.reduce_any(self._is_unseen(scenes.label), [1, 2])
        return places, (count > 0) & real[:, None]

    def _discrepancy(
        self, weights: gmmn.Weights, scenes: Scenes, draws: Draws, places, pairs
    ) -> tf.Tensor:
        """Returns how far generated features are from real ones, float32 [P].

        Args:
          weights: of the generator.
          scenes, draws: of the step.
          places: of `_places`.
          pairs: int [P, 2], images and numbers of seen classes.
        """
        place = tf.gather_nd(places, pairs)
        image = tf.broadcast_to(tf.cast(pairs[:, :1], tf.int32), tf.shape(place))
        index = tf.stack([image, place], -1)

        def at(maps: tf.Tensor | None) -> tf.Tensor | None:
            if maps is None:
                return None
            return tf.gather_nd(tf.reshape(maps, [maps.shape[0], -1, maps.shape[-1]]), index)

        classes = tf.gather(tf.constant(self._seen), pairs[:, 1])
        vectors = tf.gather(self._vectors, tf.broadcast_to(classes[:, None], tf.shape(place)))
        generated = gmmn.generate(weights, vectors, at(draws.noise), at(draws.keep))
        return self.generator.discrepancy(generated, at(scenes.features))

    def _all_at_once(self, scenes: Scenes, draws: Draws, places, active) -> tf.Tensor:
        """Returns the losses of all images and classes with the weights as they are."""
        if self.config.jit_compile:  # Compiled code has to know how many there are.
            pairs = tf.constant(list(np.ndindex(*active.shape)), tf.int64)
        else:
            pairs = tf.where(active)
        losses = self._discrepancy(self.generator.weights, scenes, draws, places, pairs)
        losses = tf.scatter_nd(tf.cast(pairs, tf.int32), losses, active.shape)
        return tf.where(active, losses, 0.0)

    def _one_by_one(
        self, state: adam.State, scenes: Scenes, draws: Draws, places, active, image: int
    ) -> tuple[adam.State, tf.Tensor]:
        """Does an update for every seen class of an image, in the order of their ids.

        Returns:
          The state after them, and the losses, float32 [S].
        """
        count = len(self._seen)

        def update(state: adam.State, k: tf.Tensor):
            return self.generator.update(
                state,
                lambda weights: self._discrepancy(
                    weights, scenes, draws, places, tf.stack([image, k])[None]
                )[0],
            )

        def body(k, state, losses):
            state, loss = tf.cond(
                active[k], lambda: update(state, k), lambda: (state, tf.constant(0.0))
            )
            return k + 1, state, losses + loss * tf.one_hot(k, count)

        _, state, losses = tf.while_loop(
            lambda k, *_: k < count,
            body,
            (tf.constant(0), state, tf.zeros([count])),
            maximum_iterations=count,
        )
        return state, losses

    def _made(self, weights: gmmn.Weights, scenes: Scenes, draws: Draws, i: int) -> tf.Tensor:
        """Returns the features of an image for the classifier, float32 [h, w, D]."""

        def generated() -> tf.Tensor:
            layout = scenes.layout[i]
            keep = draws.keep if self.settings.sampling_dropout else None
            fake = gmmn.generate(
                weights, self._words(layout), draws.noise[i], None if keep is None else keep[i]
            )
            if self.settings.generated_pixels == "unseen":
                return tf.where(self._is_unseen(layout)[..., None], fake, scenes.features[i])
            return tf.where((layout == self.spec.ignore_label)[..., None], 0.0, fake)

        return tf.cond(scenes.synthetic[i], generated, lambda: scenes.features[i])

    def _words(self, label: tf.Tensor) -> tf.Tensor:
        """Returns the word vectors of labels; void has that of class 0, as published."""
        return pixel_vectors(self._vectors, label, ignore_label=self.spec.ignore_label)

    def nodes(self, scenes: Scenes, draws: Draws) -> Nodes:
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

        Args:
          features: float32 [N, h, w, D].
          label: int32 [N, H, W], at any size.
        """
        weights = [
            self.settings.unseen_weight if c in self._unseen else 1.0
            for c in range(self.spec.num_classes)
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
        unseen = tf.cast(self._is_unseen(truth), tf.float32)
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
