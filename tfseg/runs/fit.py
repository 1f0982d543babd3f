"""Trains a run: from settings to checkpoints."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from tfseg.data import label_weights
from tfseg.data.specs import UNLABELLED_SPLIT, read_dataset_json
from tfseg.errors import UserError
from tfseg.models import model_builder
from tfseg.runs import classes, initial_weights, reestimation, training_directory
from tfseg.runs import record as run_record
from tfseg.runs.load import check_crop_size, check_sides
from tfseg.runs.training_data import TrainingData
from tfseg.settings.data import DataConfig
from tfseg.settings.methods import METHODS
from tfseg.settings.programs import Training
from tfseg.settings.run import BALANCED, TrainConfig
from tfseg.training import devices
from tfseg.training.interruption import Interruption
from tfseg.training.loop import run, tell_complete
from tfseg.training.trainer import Trainer
from tfseg.weights.checkpoint import find


def fit(settings: Training) -> int:
    """Trains, or goes on with the run whose checkpoints --train_logdir holds.

    Args:
      settings: of the whole run.

    Returns:
      0, or the exit code of the signal that ended the run early.

    Raises:
      UserError: settings, data or weights cannot be used, or the directory holds another run.
    """
    folder, data = settings.train.train_logdir, settings.data
    training_directory.check_holds_no_records(folder, (data.dataset_dir, data.dataset_dir_cls))
    settings = _with_split_of_records(settings)
    spec = _checked_spec(settings)
    settings = _with_balanced_weights(settings, spec)
    plan = _Plan(settings, spec)
    training_directory.prepare(folder)
    is_chief = devices.is_chief(plan.strategy)
    with contextlib.ExitStack() as stack:
        stack.enter_context(training_directory.sole_run(folder, is_chief))
        training_directory.check_not_emptied(folder)
        initial_run = plan.initial_run()
        is_complete = training_directory.is_complete(settings.train)
        if is_complete and not settings.train.reestimate_batch_norm:
            prefix = find.newest(folder)
            tell_complete(prefix, find.step_of(prefix), settings.train)
            return 0
        interruption = stack.enter_context(Interruption())
        stack.enter_context(devices.naming_lost_workers(plan.strategy))
        with plan.strategy.scope():
            method, ema = plan.build()
        plan.describe(method)

        def begin() -> None:
            if is_chief:
                plan.write_record(initial_run)

        return _loop(plan, method, ema, interruption, is_chief, begin)


def _with_split_of_records(settings: Training) -> Training:
    """Returns settings whose second split is the records' own, where none was asked for.

    Raises:
      UserError: dataset.json cannot be read.
    """
    data = settings.data
    if "train_split_cls" in settings.given:
        return settings
    content = read_dataset_json(data.dataset_dir_cls or data.dataset_dir) or {}
    splits = content.get("splits", {})
    if data.train_split_cls in splits or not splits:
        return settings
    data = dataclasses.replace(data, train_split_cls=UNLABELLED_SPLIT)
    return dataclasses.replace(settings, data=data)


def _checked_spec(settings: Training) -> Any:
    """Returns the data set's description, after a look at what needs no TensorFlow.

    Raises:
      UserError: a setting cannot be meant.
    """
    data, train = settings.data, settings.train
    check_sides("train_crop_size", data.train_crop_size)
    classes.check_split_is_given(data, train.method)
    spec = classes.spec_of(data, settings.given)
    weights = train.label_weights
    if weights not in (None, BALANCED) and len(weights) != spec.num_classes:
        raise UserError(
            "--label_weights needs one weight per class.",
            where="--label_weights",
            received=f"{len(weights)} weights",
            accepted=f"{BALANCED}, or {spec.num_classes} weights, in the order of {spec.name}'s "
            "classes",
        )
    return spec


def _with_balanced_weights(settings: Training, spec: Any) -> Training:
    """Returns settings with numbers in the place of --label_weights=balanced.

    Raises:
      UserError: the records do not tell how many pixels each class has.
    """
    if settings.train.label_weights != BALANCED:
        return settings
    split = settings.data.train_split
    weights, absent = label_weights.of_split(settings.data.dataset_dir, split, spec)
    if absent:
        print(
            f"warning: no mask of split {split} has a pixel of {', '.join(absent)}; "
            "--label_weights=balanced gives them 1",
            flush=True,
        )
    train = dataclasses.replace(settings.train, label_weights=tuple(weights))
    return dataclasses.replace(settings, train=train)


class _Plan:
    """What follows from the settings before anything is built.

    Args:
      settings: of the whole run.
      spec: the data set's classes.
    """

    def __init__(self, settings: Training, spec: Any):
        self.settings, self.spec = settings, spec
        train = settings.train
        self.strategy = devices.make_strategy(train, tell_clones="num_clones" in settings.given)
        self.replicas = self.strategy.num_replicas_in_sync
        self._prepare_tensorflow()
        self.method_class = METHODS[train.method].load()
        self.method_settings = self.method_class.complete_settings(
            train.method_settings, self.replicas
        )
        network = self.method_class.network_config(settings.network, self.method_settings)
        self.network = classes.with_projection(network, spec, self.method_class.heads)
        self.streams = self.method_class.streams(settings.data, train, self.method_settings)
        for stream in self.streams.values():
            if stream.batch_size != train.train_batch_size:
                devices.check_batch(
                    stream.batch_size, train, self.replicas, flag="labelled_batch_size"
                )
        if any(stream.strong_views for stream in self.streams.values()):
            _note_large_cut_out(settings.data)
        _note_unused_splits(self.streams, settings)
        self.data = TrainingData(self.streams, spec, settings.data, train, self.strategy)
        self._build = model_builder(
            self.network, spec, settings.data.train_crop_size, seed=train.seed
        )

    def _prepare_tensorflow(self) -> None:
        train = self.settings.train
        if train.jit_compile and self.settings.network.sync_batch_norm and self.replicas > 1:
            raise UserError(
                "--jit_compile and --sync_batch_norm cannot be used together on several replicas.",
                where="--jit_compile, --sync_batch_norm",
                fix="leave out one of them",
            )
        if train.deterministic:
            tf.config.experimental.enable_op_determinism()
        tf.keras.utils.set_random_seed(train.seed)

    @property
    def _sections(self) -> dict[str, Any]:
        return {
            **self.settings.sections,
            "model": self.network,
            "method": self.method_settings,
        }

    def initial_run(self) -> dict[str, Any] | None:
        """Returns what the run behind the initial checkpoint was told of labels.

        Raises:
          UserError: the directory holds another run, or that one saw hidden classes.
        """
        folder = self.settings.train.train_logdir
        if not find.has_checkpoint(folder):
            return classes.initial_run(self.settings.train, self.spec)
        changed = run_record.check_continues(folder, self._sections, self.spec)
        train = self.settings.train
        is_balanced = self.settings.given.get("label_weights") == BALANCED
        training_directory.check_same_data(
            train,
            run_record.changed_data(
                folder, self.data.facts(), train.label_weights if is_balanced else None
            ),
        )
        if changed:
            print(f"note: goes on with other settings: {'; '.join(changed)}", flush=True)
        record = run_record.read(folder) or {}
        training_directory.note_new_order(record, self.streams)
        return record.get("initial_run")

    def build(self) -> tuple[Any, Any]:
        """Builds the method with its networks, and the network of averaged weights or None."""
        train = self.settings.train
        method = self.method_class(
            build_model=self._build,
            spec=self.spec,
            config=train,
            settings=self.method_settings,
            over_replicas=self.network.sync_batch_norm and self.replicas > 1,
        )
        check_crop_size("train_crop_size", self.settings.data.train_crop_size, method.model)
        _check_reestimation(method, train)
        initial_weights.initialise_networks(method, train)
        self.data.mean_pixel = method.model.mean_pixel
        return method, initial_weights.ema_of(method, self._build, train)

    def describe(self, method: Any) -> None:
        """Prints what is trained, where and on what."""
        print(devices.describe(self.strategy), flush=True)
        parameters = sum(v.shape.num_elements() for v in method.model.trainable_variables)
        print(
            f"network: {self.network.model_variant}, {parameters / 1e6:.2f} million trainable "
            f"parameters; method: {self.settings.train.method}",
            flush=True,
        )
        print(self.data.describe(), flush=True)
        classes.describe(self.settings.data, self.spec)

    def write_record(self, initial_run: Mapping[str, Any] | None) -> None:
        """Writes config.json."""
        extra = {
            "num_replicas": self.replicas,
            "initial_run": initial_run,
            "drawn_by": self.data.drawn_by,
            "images": {"median_sides": self.data.median_sides()},
            "streams": self.data.facts(),
        }
        run_record.write(self.settings.train.train_logdir, self._sections, self.spec, extra)

    def reestimate(self, interruption: Any) -> int:
        """Measures batch norm statistics anew; returns an exit code."""
        return reestimation.run(self.settings.train, self._build, self.data, interruption)


def _loop(
    plan: _Plan,
    method: Any,
    ema: Any,
    interruption: Any,
    is_chief: bool,
    begin: Callable[[], None],
) -> int:
    """Trains to the last step; returns an exit code."""
    data, config = plan.data, plan.settings.train
    trainer = Trainer(
        method=method,
        strategy=plan.strategy,
        config=config,
        iterator=None,
        interruption=interruption,
        mixed_precision=plan.network.mixed_precision,
        ema=ema,
    )

    def start_at(step: int) -> None:
        trainer.iterator = data.iterator(step)

    panels = (
        data.panel_writer(method, plan.spec, is_chief) if config.save_summaries_images else None
    )
    try:
        code = run(
            trainer=trainer,
            config=config,
            images_per_step=sum(stream.batch_size for stream in plan.streams.values()),
            describe_batch=data.describe_batch,
            write_panels=panels,
            start_at=start_at,
            begin=begin,
            is_chief=is_chief,
        )
        if code == 0 and config.reestimate_batch_norm:
            if is_chief:
                code = plan.reestimate(interruption)
            # The other workers stay until the chief is done.
            code = trainer.agreement.largest(code)
        return code
    except tf.errors.OpError:
        data.explain()
        raise
    finally:
        data.write_bad_records()


def _note_large_cut_out(config: DataConfig) -> None:
    """Says so where the square cut out of strong views leaves little of the crop."""
    side = min(config.train_crop_size)
    if config.augmentation == "deeplab" and 4 * config.cutout_half_size > side:
        print(
            f"note: the square cut out of strong views has {2 * config.cutout_half_size} pixels a "
            f"side, the crop {side}; made for crops of 513, it leaves little to learn from here. "
            f"Consider --cutout_half_size={max(1, side // 4)} or less.",
            flush=True,
        )


def _note_unused_splits(streams: Mapping[str, Any], settings: Training) -> None:
    """Warns of a split that was asked for and that the method does not read."""
    used = {stream.split for stream in streams.values()}
    used |= {stream.label_split for stream in streams.values()}
    for name in ("train_split", "train_split_cls"):
        split = getattr(settings.data, name)
        if name in settings.given and split not in used:
            print(
                f"note: --{name}={split} is not used by {settings.train.method} with these "
                f"settings, which reads {', '.join(sorted(filter(None, used)))}.",
                flush=True,
            )


def _check_reestimation(method: Any, config: TrainConfig) -> None:
    """Insists that there are statistics to measure, where the user asks for it.

    Raises:
      UserError: no batch norm of the network learns statistics.
    """
    if config.reestimate_batch_norm and not reestimation.learning_norms(method.model):
        raise UserError(
            "--reestimate_batch_norm has nothing to do: no batch norm of this network learns "
            "statistics.",
            where="--reestimate_batch_norm",
            received=config.reestimate_batch_norm,
            accepted="--fine_tune_batch_norm, or a head with batch norm",
            fix="leave out --reestimate_batch_norm",
        )
