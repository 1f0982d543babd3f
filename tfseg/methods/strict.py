"""STRICT: self-training on pseudo labels of unseen classes that survive a change of view.

1. At the start of a round the teacher becomes a copy of the network, which SPNet trained on the
   seen classes (--tf_initial_checkpoint).
2. The teacher sees every crop as it is, mirrored, and enlarged. It may answer with unseen classes
   only. Where all views agree, their answer is a pseudo label.
3. Pixels that may be of an unseen class (`candidate`) take it; labelled pixels keep their label.
4. The network learns from one cross entropy over seen and unseen classes.

With --view_scales= and --mirror_views=false it is plain self-training. With
--generator_classes=all, --pseudo_label_share and --disagreeing=ignore besides, it is ZS5: in every
image, the most confident pixels of every unseen class get its label, and the others are ignored.
(Class splits without background ignore them in any case, and refuse --disagreeing.) The teacher may
then answer with a seen class. A candidate cannot be of a seen class other than background, because
those have labels. So it becomes background, or has no label where background takes no part.

SPNet may have learned that unseen objects are background. A threshold for all images then finds
none of them, but within an image they stand out: --pseudo_label_scores=standardised with
--pseudo_label_share and --generator_classes=all (ours). A comparison of the images tells which
class an object is of: --pseudo_label_names=image (ours).

Batch norm keeps its statistics, as published, unless --fine_tune_batch_norm is given.

Source: Pastore et al., "A closer look at self-training for zero-label semantic segmentation", L2ID
at CVPR 2021; STRICT specification 4 and 5; ZS3 specification 4.6. Ours: void and padding get no
pseudo labels (--pseudo_label_void), rounds follow each other in one run, --upsample_logits, the
default, learns at the crop's resolution (published: that of the logits), and evaluation resizes
logits with aligned corners (published: half-pixel centres).
"""

import itertools
from collections.abc import Collection

import tensorflow as tf

from tfseg.errors import UserError
from tfseg.methods import teacher, zero_label
from tfseg.methods.base import Batch
from tfseg.methods.spnet import SPNet
from tfseg.models.layers.dropout import fold_seed
from tfseg.monitors import Monitors
from tfseg.ops import agreement
from tfseg.ops.calibration import Calibration, calibrated
from tfseg.ops.confident_share import class_of_image, most_confident, standardised
from tfseg.ops.losses import pixel_cross_entropy, weights_of
from tfseg.settings.methods.strict import StrictConfig

# Optimisers whose state is zero at the start, so that a round may begin with it.
_RESTARTABLE = ("momentum", "adam")


class Strict(SPNet):
    """Self-training with consistency constraint."""

    Config = StrictConfig

    def __init__(self, *, build_model, **options):
        super().__init__(build_model=build_model, **options)
        # (Not in `build`, which makes the network of averaged weights too.)
        self.teacher = build_model(name="teacher")
        self.teacher.trainable = False
        split, settings = self.spec.seen_unseen, self.settings
        # (An empty flag is None.)
        self._view_scales = tuple(settings.view_scales or ())
        self._answers = split.unseen if settings.generator_classes == "unseen" else split.visible
        # Label of a candidate that is of no unseen class, and of one about which nothing is known.
        self._none = self.spec.ignore_label if split.background is None else split.background
        self._otherwise = self._none
        if settings.disagreeing == "ignore":
            self._otherwise = self.spec.ignore_label
        self._check()

    @property
    def rounds(self) -> int:
        """Rounds of self-training."""
        return self.settings.rounds

    def networks(self):
        return {"model": self.model, "teacher": self.teacher}

    def _check(self) -> None:
        settings, steps = self.settings, self.config.training_number_of_steps
        if steps % settings.rounds:
            raise UserError(
                "--rounds must divide the number of steps.",
                where="--rounds",
                received=f"{settings.rounds}, of --training_number_of_steps={steps}",
                fix=f"--training_number_of_steps={-(-steps // settings.rounds) * settings.rounds}",
            )
        if settings.rounds > 1 and self.config.optimizer not in _RESTARTABLE:
            raise UserError(
                "This optimiser cannot be started afresh at every round.",
                where="--optimizer",
                received=f"{self.config.optimizer}, with --rounds={settings.rounds}",
                accepted=", ".join(_RESTARTABLE),
            )
        if settings.pseudo_label_start >= self._period:
            raise UserError(
                "No step would use pseudo labels.",
                where="--pseudo_label_start",
                received=settings.pseudo_label_start,
                accepted=f"less than the {self._period} steps of a round",
            )
        self._check_views()
        self._check_background()

    def _check_views(self) -> None:
        settings, scales = self.settings, self._view_scales
        if any(scale <= 0 for scale in scales):
            raise UserError(
                "The scales of views must be above 0.", where="--view_scales", received=scales
            )
        if not settings.random_view_scales:
            return
        if len(set(scales)) < 2:
            raise UserError(
                "Random scales need a smallest and a largest one.",
                where="--view_scales",
                received=", ".join(map(str, scales)) or "none",
                accepted="for example 0.5,1.75, as published",
            )
        if self.config.jit_compile:
            raise UserError(
                "XLA cannot compile views of random scales.",
                where="--random_view_scales, --jit_compile",
                fix="leave out one of them",
            )

    def _check_background(self) -> None:
        settings, seen = self.settings, self.spec.seen_unseen.background is not None
        if settings.teacher_seen_bias and settings.generator_classes != "all":
            raise UserError(
                "--teacher_seen_bias has no effect on unseen classes alone.",
                where="--teacher_seen_bias",
                received=settings.teacher_seen_bias,
                accepted="0, or any with --generator_classes=all",
            )
        if settings.pseudo_label_scores == "standardised":
            self._check_standardised()
        elif settings.pseudo_label_names != "pixel":
            raise UserError(
                "One class for an image needs standardised scores.",
                where=f"--pseudo_label_names={settings.pseudo_label_names}",
                received=f"--pseudo_label_scores={settings.pseudo_label_scores}",
                fix="add --pseudo_label_scores=standardised",
            )
        for flag, used, needs in (
            ("pseudo_label_void", settings.pseudo_label_void, False),
            ("disagreeing", settings.disagreeing != "background", True),
            ("background_loss", settings.background_loss != "plain", True),
        ):
            if used and seen != needs:
                is_or_not = "is" if seen else "is not"
                raise UserError(
                    f"--{flag}={getattr(settings, flag)} makes no sense where background "
                    f"{is_or_not} a seen class.",
                    where=f"--{flag}",
                    received=f"--class_split={self.spec.seen_unseen.name}",
                    fix=f"leave out --{flag}",
                )

    def _check_standardised(self) -> None:
        settings = self.settings
        where = "--pseudo_label_scores=standardised"
        if settings.pseudo_label_share is None or settings.generator_classes != "all":
            raise UserError(
                "Standardised scores need --pseudo_label_share, and a teacher that may answer with "
                "all classes.",
                where=where,
                received=f"--pseudo_label_share={settings.pseudo_label_share}, "
                f"--generator_classes={settings.generator_classes}",
                fix="add --pseudo_label_share=25 --generator_classes=all",
            )
        parts = self.config.gradient_accumulation_steps
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        needed = 2 * replicas * parts
        if settings.pseudo_label_names == "image" and self.config.train_batch_size < needed:
            raise UserError(
                "The class of an image is found by comparison with other images: every part of a "
                "batch needs two images.",
                where="--pseudo_label_names=image, --train_batch_size",
                received=f"{self.config.train_batch_size} images for {replicas} replica(s), "
                f"--gradient_accumulation_steps={parts}",
                fix=f"--train_batch_size={needed}",
            )
        for flag in ("teacher_seen_bias", "min_confidence"):
            if getattr(settings, flag):
                raise UserError(
                    f"--{flag} has no effect on standardised scores.",
                    where=f"{where}, --{flag}",
                    received=getattr(settings, flag),
                    fix=f"leave out --{flag}",
                )

    def check_initial_weights(self, random: Collection[str]) -> None:
        """Insists on a teacher that has learned before it teaches.

        Raises:
          UserError: some of its variables would start from random values.

        Source: specification 1.4.
        """
        settings = self.settings
        learns_before = settings.teacher == "ema" and settings.pseudo_label_start > 0
        if random and not learns_before:
            raise UserError(
                "The teacher would start from random values and would teach nothing.",
                where="--tf_initial_checkpoint, --initialize_last_layer",
                received=f"{len(random)} random variables: {', '.join(sorted(random)[:3])} ...",
                accepted="a run of the same network, such as --method=spnet; or --teacher=ema with "
                "--pseudo_label_start",
                fix="--tf_initial_checkpoint=<its --train_logdir> --initialize_last_layer",
            )

    # Rounds --------------------------------------------------------------------------------------

    @property
    def _period(self) -> int:
        """Steps of a round."""
        return self.config.training_number_of_steps // self.settings.rounds

    def begin_round(self) -> None:
        """Makes the teacher a copy of the network."""
        teacher.copy(self.model, to=self.teacher)

    def after_update(self, step: tf.Tensor) -> None:
        """Moves the teacher towards the network, where it is a moving average."""
        if self.settings.teacher == "ema":
            decay = self.settings.teacher_decay
            teacher.follow(self.teacher, self.model, decay=decay, step=step)

    # The step ------------------------------------------------------------------------------------

    def losses(
        self, batch: Batch, step: tf.Tensor, seed: tf.Tensor, monitors: Monitors
    ) -> dict[str, tf.Tensor]:
        train = batch[zero_label.STREAM]
        logits = self.model(train["image"], training=True, dropout_seed=seed)["logits"]
        logits, maps = zero_label.at_one_size(
            logits,
            {
                "label": train["label"],
                "candidate": self.candidates(train["label"], train["candidate"]),
                "hidden_label": train["hidden_label"],
            },
            upsample_logits=self.config.upsample_logits,
        )
        pseudo, kept = self.labels_of_unseen(
            train["image"], maps["candidate"], seed=fold_seed(seed, 1)
        )
        target = agreement.complete(
            maps["label"], pseudo, kept, maps["candidate"], otherwise=self._otherwise
        )
        started = step % self._period >= self.settings.pseudo_label_start
        target = tf.where(started, target, maps["label"])
        self._monitor(monitors, logits, target, maps)
        return {"segmentation": self.segmentation_loss(logits, target)}

    def candidates(self, label: tf.Tensor, candidate: tf.Tensor) -> tf.Tensor:
        """Returns which pixels may get a pseudo label, bool [N, H, W].

        Args:
          label: int32 [N, H, W].
          candidate: bool [N, H, W], of the batch.
        """
        if self.settings.pseudo_label_void:
            return tf.equal(label, self.spec.ignore_label)
        return candidate

    def view_logits(
        self, image: tf.Tensor, size: tuple[int, int], *, seed: tf.Tensor | None = None
    ) -> list[tf.Tensor]:
        """Returns the teacher's logits of every view, in the geometry of the first.

        Args:
          image: RGB 0..255 [N, H, W, 3].
          size: (height, width) of the result.
          seed: int32 [2]; for random sizes of views.

        Returns:
          float32 [N, height, width, U] of each view, U classes that a pseudo label may name.

        Source: specification 4.1.
        """
        views = agreement.scaled_views(
            tf.cast(image, tf.float32),
            scales=self._scales(seed),
            mirror=self.settings.mirror_views,
        )
        classes = tf.constant(self._answers, tf.int32)
        result = []
        for view in views:
            logits = self.teacher(view.image, training=False, input_scale=view.scale)["logits"]
            logits = tf.gather(tf.cast(tf.stop_gradient(logits), tf.float32), classes, axis=-1)
            result.append(
                agreement.to_first(
                    logits,
                    size,
                    mirrored=view.mirrored,
                    align_corners=self.config.upsample_logits,
                )
            )
        return result

    def _scales(self, seed: tf.Tensor | None) -> list[float | tf.Tensor]:
        scales = self._view_scales
        if not self.settings.random_view_scales:
            return list(scales)
        drawn = tf.random.stateless_uniform([len(scales)], seed, alg="philox")
        return tf.unstack(min(scales) + (max(scales) - min(scales)) * drawn)

    def labels_of_unseen(
        self, image: tf.Tensor, candidate: tf.Tensor, *, seed: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns pseudo labels for a batch of images.

        Args:
          image: RGB 0..255 [N, H, W, 3].
          candidate: bool [N, h, w], pixels that may get one; its size is that of the result.
          seed: int32 [2]; for random sizes of views.

        Returns:
          int32 [N, h, w]: an unseen class; or background or the ignore label, where the teacher
          says that it is none of them. And bool [N, h, w]: which of these labels count.

        Source: specification 4.2; ZS3 specification 4.6 for the share.
        """
        settings, split = self.settings, self.spec.seen_unseen
        logits = self.view_logits(image, candidate.shape[1:3], seed=seed)
        if settings.pseudo_label_scores == "standardised":
            return self._standing_out(logits, candidate)
        seen = tf.constant([float(c in split.seen) for c in self._answers])
        scores = logits
        if settings.teacher_seen_bias:
            scores = [self._weakened(tf.nn.softmax(x)) for x in logits]
        answer, kept = agreement.agree(scores)
        label = tf.where(
            tf.gather(seen, answer) > 0, self._none, tf.gather(tf.constant(self._answers), answer)
        )
        if settings.min_confidence == 0 and settings.pseudo_label_share is None:
            return label, kept
        probs = tf.add_n([tf.nn.softmax(x) for x in logits]) / len(logits)
        confidence = tf.gather(probs, answer, batch_dims=3)
        kept &= confidence >= settings.min_confidence
        if settings.pseudo_label_share is not None:
            chosen = most_confident(
                self._weakened(probs),
                candidate & kept,
                classes=[i for i, c in enumerate(self._answers) if c in split.unseen],
                percent=settings.pseudo_label_share,
            )
            kept &= (chosen >= 0) | (tf.gather(seen, answer) > 0)
        return label, kept

    def _standing_out(
        self, logits: list[tf.Tensor], candidate: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns pseudo labels of the candidates that stand out in their image (ours).

        Args:
          logits: float32 [N, h, w, classes of the generator] of each view.
          candidate: bool [N, h, w].

        Returns:
          As `labels_of_unseen`. Where the views agree on a class that does not stand out enough,
          the label "no unseen class" counts. Where they disagree, no label counts.
        """
        unseen = [(i, c) for i, c in enumerate(self._answers) if c in self.spec.seen_unseen.unseen]
        columns, classes = (tf.constant(x, tf.int32) for x in zip(*unseen))
        log_probs = [tf.gather(tf.nn.log_softmax(x), columns, axis=-1) for x in logits]
        if self.settings.pseudo_label_names == "image":
            return self._named_by_image(log_probs, candidate, classes)
        scores = [standardised(x, candidate) for x in log_probs]
        answer, kept = agreement.agree(scores)
        chosen = most_confident(
            tf.add_n(scores),
            candidate & kept,
            classes=list(range(len(unseen))),
            percent=self.settings.pseudo_label_share,
        )
        return tf.where(chosen >= 0, tf.gather(classes, answer), self._none), kept

    def _named_by_image(
        self, log_probs: list[tf.Tensor], candidate: tf.Tensor, classes: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns pseudo labels of one class per image, where an unseen class stands out (ours).

        Args:
          log_probs: float32 [N, h, w, U] of each view.
          candidate: bool [N, h, w].
          classes: the U unseen classes, int32.

        Returns:
          As `labels_of_unseen`. A pixel that stands out in all views gets the class of its image.
          If it stands out in no view, the label "no unseen class" counts. If it stands out in some
          views only, no label counts.
        """
        shares = [
            most_confident(
                tf.reduce_max(standardised(x, candidate), -1, keepdims=True),
                candidate,
                classes=[0],
                percent=self.settings.pseudo_label_share,
            )
            >= 0
            for x in log_probs
        ]
        everywhere, somewhere = (f(tf.stack(shares), 0) for f in (tf.reduce_all, tf.reduce_any))
        name = tf.gather(classes, class_of_image(tf.add_n(log_probs), everywhere, candidate))
        label = tf.where(everywhere, name[:, None, None], self._none)
        return label, everywhere | ~somewhere

    def _weakened(self, probs: tf.Tensor) -> tf.Tensor:
        """Returns the teacher's probabilities; those of seen classes are reduced by the bias."""
        if not self.settings.teacher_seen_bias:
            return probs
        seen = tuple(i for i, c in enumerate(self._answers) if c in self.spec.seen_unseen.seen)
        return calibrated(probs, Calibration(seen, self.settings.teacher_seen_bias))

    def segmentation_loss(self, logits: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
        """Returns the mean cross entropy over seen and unseen classes.

        Args:
          logits: float32 [N, h, w, C].
          target: int32 [N, h, w].

        Source: specification 4.4. Pixels with a label weigh as --label_weights says (ours). With
        --background_loss=with_unseen a background pixel's loss is -log of the sum of the
        probabilities of background and the unseen classes (ours).
        """
        split = self.spec.seen_unseen
        visible = zero_label.only(logits, split.visible)
        pixel_loss, kept = pixel_cross_entropy(visible, target, ignore_label=self.spec.ignore_label)
        if self.settings.background_loss == "with_unseen":
            possible = zero_label.only(logits, (split.background, *split.unseen))
            either = tf.reduce_logsumexp(visible, -1) - tf.reduce_logsumexp(possible, -1)
            pixel_loss = tf.where(tf.equal(target, split.background), either, pixel_loss)
        pseudo = zero_label.among(target, split.unseen)
        of_class = weights_of(target, self.config.label_weights)
        pixel_loss *= tf.where(pseudo, 1.0, of_class)
        weight = kept * tf.where(pseudo, self.settings.pseudo_label_weight, 1.0)
        return self.mean_loss(pixel_loss, weight)

    # What a user watches -------------------------------------------------------------------------

    def _monitor(self, monitors: Monitors, logits, target, maps) -> None:
        """Measures the pseudo labels against labels that no loss sees."""
        hidden = maps["hidden_label"]
        zero_label.monitor(monitors, logits, hidden, spec=self.spec)
        pseudo = tf.cast(zero_label.among(target, self.spec.seen_unseen.unseen), tf.float32)
        known = pseudo * tf.cast(tf.not_equal(hidden, self.spec.ignore_label), tf.float32)
        right = known * tf.cast(tf.equal(target, hidden), tf.float32)
        candidates = tf.reduce_sum(tf.cast(maps["candidate"], tf.float32))
        monitors.share("pseudo_labelled_candidates", tf.reduce_sum(pseudo), candidates)
        monitors.share("pseudo_label_precision", tf.reduce_sum(right), tf.reduce_sum(known))

    def panels(self, batch: Batch) -> dict[str, tf.Tensor]:
        """Returns an image, its training label, the pseudo labels, the prediction, the truth."""
        train = batch[zero_label.STREAM]
        candidate = self.candidates(train["label"], train["candidate"])
        pseudo, kept = self.labels_of_unseen(train["image"], candidate, seed=tf.constant([0, 0]))
        target = agreement.complete(
            train["label"], pseudo, kept, candidate, otherwise=self._otherwise
        )
        panels = list(super().panels(batch).items())
        return dict(itertools.chain(panels[:2], [("pseudo_label", target)], panels[2:]))
