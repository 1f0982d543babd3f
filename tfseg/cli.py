"""The programs: flags to settings, settings to objects, objects to work. No logic of their own.

Everything heavy is imported inside the functions, so that `--help` answers at once.
"""

import contextlib
import dataclasses
import datetime
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from tfseg import command_line, sharing
from tfseg.errors import UserError, check_choice
from tfseg.runs import record as run_record
from tfseg.settings import flags
from tfseg.settings.data import DataConfig
from tfseg.settings.methods import METHOD_CONFIGS, ZeroLabelConfig
from tfseg.settings.network import ModelConfig
from tfseg.settings.prediction import EvalConfig, VisConfig
from tfseg.settings.run import TrainConfig

# Where the published programs differ from each other (PseudoSeg specification 1.3).
_PROGRAM_DEFAULTS = {
    "supervised": {
        "base_learning_rate": 0.0001,
        "initialize_last_layer": True,
        "last_layers_contain_logits_only": False,
        "save_summaries_secs": 600,
        "save_summaries_images": False,
    },
}


def train(*, default_method: str) -> None:
    """Entry point of the training programs.

    Args:
      default_method: value of --method where the flag is absent.
    """
    defaults = {"method": default_method, **_PROGRAM_DEFAULTS.get(default_method, {})}
    flags.define(ModelConfig, DataConfig, TrainConfig, defaults=defaults)
    flags.define_method_settings(METHOD_CONFIGS)
    _run(_train)


def evaluate() -> None:
    """Entry point of eval.py."""
    flags.define(ModelConfig, DataConfig, EvalConfig)
    _run(_evaluate)


def visualize() -> None:
    """Entry point of vis.py."""
    flags.define(ModelConfig, DataConfig, VisConfig)
    _run(_visualize)


def _run(main: Callable[[list[str]], int]) -> NoReturn:
    """Runs a program and leaves the process at once, without Python's own shutdown.

    Threads of the input pipeline may be inside Python when the interpreter is torn down, and then
    wait for it for ever: now and then a finished program would hang.
    """
    try:
        command_line.run(main)
    except SystemExit as leaving:
        if "tensorflow" not in sys.modules:
            raise
        code = leaving.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def check_sides(name: str, crop_size: tuple[int, ...] | None) -> None:
    """Insists on two positive sides.

    Raises:
      UserError: something else.
    """
    if crop_size is None or len(crop_size) != 2 or min(crop_size) < 1:
        raise UserError(
            f"--{name} needs two positive sides.",
            where=f"--{name}",
            received=crop_size,
            accepted="height,width, for example 513,513",
        )


def check_crop_size(name: str, crop_size: tuple[int, int], network: Any) -> None:
    """Insists on a crop size that the network takes.

    Args:
      name: of the flag.
      crop_size: height and width in pixels, at least 1.
      network: with `valid_size`.

    Raises:
      UserError: another size.
    """
    accepted = network.valid_size(*crop_size)
    if tuple(crop_size) != accepted:
        larger = network.valid_size(*(side + 1 for side in accepted))
        raise UserError(
            f"The network does not take crops of this --{name}.",
            where=f"--{name}",
            received=",".join(map(str, crop_size)),
            accepted=f"for example {accepted[0]},{accepted[1]} or {larger[0]},{larger[1]}",
        )


def _note_large_cut_out(config: DataConfig) -> None:
    """Says so where the square cut out of strong views leaves little of the crop."""
    side = min(config.train_crop_size)
    if 4 * config.cutout_half_size > side:
        print(
            f"note: the square cut out of strong views has {2 * config.cutout_half_size} pixels a "
            f"side, the crop {side}; made for crops of 513, it leaves little to learn from here. "
            f"Consider --cutout_half_size={max(1, side // 4)} or less.",
            flush=True,
        )


def _note_unused_splits(streams: Mapping[str, Any], data: DataConfig, train: TrainConfig) -> None:
    """Warns of a split that was asked for and that the method does not read."""
    used = {stream.split for stream in streams.values()}
    used |= {stream.label_split for stream in streams.values()}
    for name in ("train_split", "train_split_cls"):
        if flags.is_given(name) and getattr(data, name) not in used:
            print(
                f"note: --{name}={getattr(data, name)} is not used by {train.method} with these "
                f"settings, which reads {', '.join(sorted(filter(None, used)))}.",
                flush=True,
            )


# The augmentations that heed a flag which not all do.
_AUGMENTATIONS_OF = {
    "min_scale_factor": ("deeplab", "composition", "warped_crop", "short_side_crop"),
    "max_scale_factor": ("deeplab", "composition", "warped_crop", "short_side_crop"),
    "scale_factor_step_size": ("deeplab",),
    "augmentation_ops": ("composition",),
    "crop_area": ("resized_crop",),
    "augmentation_size": ("warped_crop", "short_side_crop"),
    "padding_color": ("warped_crop", "short_side_crop"),
}


def _check_augmentation_flags(config: DataConfig) -> None:
    """Refuses a flag of another augmentation than the chosen one.

    Raises:
      UserError: there is one.
    """
    for flag, owners in _AUGMENTATIONS_OF.items():
        if flags.is_given(flag) and config.augmentation not in owners:
            raise UserError(
                f"--{flag} is no setting of --augmentation={config.augmentation}.",
                where=f"--{flag}",
                received=getattr(config, flag),
                accepted=f"--{flag} with --augmentation={' or '.join(owners)}",
                fix=f"leave out --{flag}, or set --augmentation={owners[0]}",
            )


# Class splits and word vectors --------------------------------------------------------------------

_SPLIT_FLAGS = ("class_split", "seen_background", "exclude_validation_classes")
_VECTOR_FLAGS = ("class_embeddings", "embedding_norm")


def _check_split_flags(config: DataConfig, method: str) -> None:
    """Insists that zero-label methods, and they alone, are told which classes are seen.

    Raises:
      UserError: --class_split is missing, or a flag of theirs was given to another method.
    """
    methods = [name for name, cls in METHOD_CONFIGS.items() if issubclass(cls, ZeroLabelConfig)]
    if method in methods:
        if config.class_split is None:
            raise UserError(
                f"--method={method} needs to know which classes have pixel labels.",
                where="--class_split",
                accepted="the name of a published split, or a JSON file: "
                '{"seen": [names], "unseen": [names], "validation": [names], '
                '"background": name or null}',
            )
        return
    for flag in (*_SPLIT_FLAGS, *_VECTOR_FLAGS):
        if flags.is_given(flag):
            raise UserError(
                f"--{flag} is no setting of --method={method}.",
                where=f"--{flag}",
                received=getattr(config, flag),
                accepted=f"--{flag} with --method={' or --method='.join(methods)}",
                fix=f"leave out --{flag}, or use train_zls.py",
            )


def _spec_of(config: DataConfig, record: Mapping[str, Any] | None = None) -> Any:
    """Returns the data set's description, with class split and word vectors where there are any.

    Args:
      config: directory, split and vectors.
      record: config.json of the run that is evaluated, whose classes and split hold; None: there
        is no such run.

    Raises:
      UserError: the data, the split or the vectors cannot be used, or are not those of the run.
    """
    from tfseg.data.specs import load_spec

    spec = load_spec(config.dataset_dir, config.dataset)
    if record is not None and list(record["dataset"]["class_names"]) != list(spec.class_names):
        names = record["dataset"]["class_names"]
        raise UserError(
            "The checkpoint was trained on other classes than this data set has.",
            where=f"--checkpoint_dir, --dataset_dir={config.dataset_dir}",
            received=f"{len(spec.class_names)} classes: {', '.join(spec.class_names[:8])} ...",
            accepted=f"{len(names)} classes: {', '.join(names[:8])} ...",
            fix="evaluate on records made with the class names of the training records",
        )
    spec = dataclasses.replace(spec, seen_unseen=_split_of(config, spec, record))
    return dataclasses.replace(spec, vectors=_vectors_of(config, spec, record))


def _split_of(config: DataConfig, spec: Any, record: Mapping[str, Any] | None) -> Any:
    """Returns the class split, None where there is none.

    Raises:
      UserError: it cannot be used, or is not that of the run.
    """
    from tfseg.data import class_splits

    saved = None if record is None else record["dataset"].get("split")
    if saved is not None:
        given = [flag for flag in _SPLIT_FLAGS if flags.is_given(flag)]
        if not given:
            return class_splits.ClassSplit.from_json(saved)
        before = {
            flag: record["data"][flag]
            for flag in _SPLIT_FLAGS
            if flag not in given and flag in record["data"]
        }
        config = dataclasses.replace(config, **before)
    if config.class_split is None:
        for flag in ("seen_background", "exclude_validation_classes"):
            if getattr(config, flag):
                raise UserError(f"--{flag} needs --class_split.", where=f"--{flag}")
        return None
    split = class_splits.load(config.class_split, spec, seen_background=config.seen_background)
    if config.exclude_validation_classes:
        split = split.without_validation()
    if saved is not None:
        _check_of_run("class_split", record, dataclasses.replace(spec, seen_unseen=split))
    return split


def _vectors_of(config: DataConfig, spec: Any, record: Mapping[str, Any] | None) -> Any:
    """Returns the word vectors, None where none are given.

    A checkpoint holds those that its network needs.

    Raises:
      UserError: they cannot be used, or are not those of the run.
    """
    from tfseg.data import class_embeddings

    if config.class_embeddings is None:
        if flags.is_given("embedding_norm"):
            raise UserError("--embedding_norm needs --class_embeddings.", where="--embedding_norm")
        return None
    norm = config.embedding_norm
    if record is not None and not flags.is_given("embedding_norm"):
        norm = record["data"].get("embedding_norm", norm)
    vectors = class_embeddings.load(
        config.class_embeddings,
        spec.class_names,
        norm=norm,
        needed=None if spec.seen_unseen is None else spec.seen_unseen.visible,
    )
    if record is not None:
        _check_of_run("class_embeddings", record, dataclasses.replace(spec, vectors=vectors))
    return vectors


def _check_of_run(flag: str, record: Mapping[str, Any], spec: Any) -> None:
    """Insists that a split or word vectors given for evaluation are those of the training run.

    Raises:
      UserError: they are others.
    """
    received = run_record.zero_label_facts(spec.to_json())[flag]
    accepted = run_record.zero_label_facts(record["dataset"])[flag]
    if received != accepted:
        raise UserError(
            f"--{flag} contradicts the run that made the checkpoint.",
            where=f"--{flag}",
            received=received,
            accepted=f"{accepted} (from its {run_record.NAME})",
            fix=f"leave out --{flag} and what goes with it: a checkpoint's own is used",
        )


def _with_projection(config: ModelConfig, spec: Any, heads: Sequence[str]) -> ModelConfig:
    """Returns the network's settings with the width of the projection head, which is the vectors'.

    Args:
      config: the network's settings.
      spec: with the word vectors, where there are any.
      heads: those with which the method works.

    Raises:
      UserError: --projection_dim, or word vectors that the method has no other use for, are given
        for another head.
    """
    if config.head != "projection":
        if spec.vectors is not None and "projection" in heads:
            raise UserError(
                f"--class_embeddings would not be heeded: --head={config.head} needs no word "
                "vectors.",
                where="--class_embeddings, --head",
                accepted="--head=projection, the default of the method",
                fix="leave out one of them",
            )
        if config.projection_dim is not None:
            raise UserError(
                f"--projection_dim is no setting of --head={config.head}.",
                where="--projection_dim",
                received=config.projection_dim,
                accepted="--projection_dim with --head=projection",
            )
        return config
    if config.projection_dim is None and spec.vectors is not None:
        return dataclasses.replace(config, projection_dim=spec.vectors.width)
    return config


def _initial_run(config: TrainConfig, spec: Any) -> dict[str, Any] | None:
    """Returns what the run behind the initial checkpoint was told of labels; None: not known.

    Raises:
      UserError: it saw labels of classes that are unseen, or take no part, in this run.
    """
    from tfseg.data import class_names

    if not config.tf_initial_checkpoint:
        return None
    told = run_record.told(run_record.read(config.tf_initial_checkpoint))
    if told is None or spec.seen_unseen is None:
        return told
    hidden = [spec.class_names[c] for c in (*spec.seen_unseen.unseen, *spec.seen_unseen.held_out)]
    known = [name for name in hidden if class_names.matches(told["seen_classes"], name)]
    if known:
        raise UserError(
            "The initial checkpoint has learned from labels of classes that are unseen in this "
            "run, or held out.",
            where=f"--tf_initial_checkpoint={config.tf_initial_checkpoint}",
            received=", ".join(known),
            accepted="a run that saw labels of none of these classes: "
            f"{', '.join(hidden)} ({run_record.NAME} beside the checkpoint says what it saw)",
            fix="train the first step with this run's --class_split, "
            "--exclude_validation_classes included where it is given here",
        )
    return told


def _describe_split(spec: Any) -> str:
    """Returns one line on what the network is told."""
    facts = run_record.zero_label_facts(spec.to_json())
    return f"class split {spec.seen_unseen.name}: {facts['class_split']}"


def _note_leaks(config: DataConfig, spec: Any) -> None:
    """Says what in the data tells a run where its unseen classes are."""
    split = spec.seen_unseen
    if split is not None and config.drop_images:
        print(
            "note: --drop_images: the list may tell in which images the unseen classes are",
            flush=True,
        )
    if split is not None and split.background is None and not spec.has_background:
        print(
            "note: this data set has no background, so the pixels without a label are just those "
            "of the unseen classes and void: where unseen classes are is no secret, as published",
            flush=True,
        )


# Training ---------------------------------------------------------------------------------------


# Held by the run that writes a training directory.
_RUN_LOCK = ".train.lock"


def _prepare_logdir(path: str) -> None:
    try:
        os.makedirs(path, exist_ok=True)
    except FileExistsError:
        raise UserError("--train_logdir is a file.", where=path, fix="choose a directory") from None


@contextlib.contextmanager
def _sole_run(logdir: str, is_chief: bool) -> Iterator[None]:
    """Keeps other runs out of a training directory.

    Args:
      logdir: of the run; it is there.
      is_chief: the other workers of a cluster share the directory with it.

    Raises:
      UserError: another run is at work there.
    """
    if not is_chief:
        yield
        return
    now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    note = f"process {os.getpid()} on {socket.gethostname()}, since {now}"
    try:
        with sharing.locked(os.path.join(logdir, _RUN_LOCK), wait=False, note=note) as no_locks:
            if no_locks:
                print(
                    f"note: {logdir} is on a disk without locks ({no_locks}): let no other run "
                    "use this --train_logdir until this one has ended",
                    flush=True,
                )
            yield
    except sharing.Busy as busy:
        raise UserError(
            "Another training run is at work in this directory.",
            where=f"--train_logdir={logdir}",
            received=busy.holder,
            fix="wait until it ends, stop it, or choose another --train_logdir",
        ) from None


def _initialise(model, config: TrainConfig, heads: Sequence[Any]) -> set[str]:
    """Gives a fresh network and its auxiliary heads their initial weights; says what matched.

    Returns:
      Names of the variables that keep their random values.
    """
    from tfseg.models.heads.projection import CLASS_VECTORS
    from tfseg.weights import checkpoint
    from tfseg.weights.initial import load_initial_weights, load_pretrained

    random = set(checkpoint.by_name(model.variables)) - {CLASS_VECTORS}
    if config.pretrained_weights:
        coverage = load_pretrained(model, config.pretrained_weights)
        print(coverage, flush=True)
        random.difference_update(coverage.matched)
    if config.tf_initial_checkpoint:
        coverage = load_initial_weights(
            model,
            config.tf_initial_checkpoint,
            heads=heads,
            initialize_last_layer=config.initialize_last_layer,
            last_layers_contain_logits_only=config.last_layers_contain_logits_only,
        )
        print(coverage, flush=True)
        random.difference_update(coverage.matched)
    return random


def _train(argv: list[str]) -> int:
    model_config = flags.read(ModelConfig)
    data_config = flags.read(DataConfig)
    config = flags.read(TrainConfig)
    check_choice(config.method, METHOD_CONFIGS, flag="method", what="method")
    settings = flags.read_method_settings(METHOD_CONFIGS, config.method)
    check_sides("train_crop_size", data_config.train_crop_size)
    _check_augmentation_flags(data_config)
    _check_split_flags(data_config, config.method)
    if config.gradient_accumulation_steps < 1:
        raise UserError(
            "--gradient_accumulation_steps must be at least 1.",
            where="--gradient_accumulation_steps",
            received=config.gradient_accumulation_steps,
        )
    spec = _spec_of(data_config)

    import tensorflow as tf

    from tfseg.methods import METHODS
    from tfseg.models import model_builder
    from tfseg.training import devices
    from tfseg.training.interruption import Interruption
    from tfseg.training.loop import run
    from tfseg.training.trainer import Trainer
    from tfseg.weights import checkpoint

    strategy = devices.make_strategy(config, tell_clones=flags.is_given("num_clones"))
    replicas = strategy.num_replicas_in_sync
    settings = METHODS[config.method].complete_settings(settings, replicas)
    if config.jit_compile and model_config.sync_batch_norm and replicas > 1:
        raise UserError(
            "--jit_compile and --sync_batch_norm cannot be used together on several replicas.",
            where="--jit_compile, --sync_batch_norm",
            fix="leave out one of them",
        )
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    tf.keras.utils.set_random_seed(config.seed)

    if config.label_weights is not None and len(config.label_weights) != spec.num_classes:
        raise UserError(
            "--label_weights needs one weight per class.",
            where="--label_weights",
            received=f"{len(config.label_weights)} weights",
            accepted=f"{spec.num_classes} weights, in the order of {spec.name}'s classes",
        )
    method_class = METHODS[config.method]
    defaults = method_class.network_defaults.items()
    model_config = dataclasses.replace(
        model_config, **{name: value for name, value in defaults if not flags.is_given(name)}
    )
    model_config = method_class.network_config(model_config, settings)
    model_config = _with_projection(model_config, spec, method_class.heads)
    streams = method_class.streams(data_config, config, settings)
    for stream in streams.values():
        if stream.batch_size != config.train_batch_size:
            devices.check_batch(stream.batch_size, config, replicas, flag="labelled_batch_size")
    if any("strong" in stream.views for stream in streams.values()):
        _note_large_cut_out(data_config)
    _note_unused_splits(streams, data_config, config)
    data = TrainingData(streams, spec, data_config, config, strategy)
    _prepare_logdir(config.train_logdir)
    is_chief = devices.is_chief(strategy)
    sole_run = contextlib.ExitStack()
    sole_run.enter_context(_sole_run(config.train_logdir, is_chief))
    facts = {
        "model": model_config,
        "data": data_config,
        "train": config,
        "method": settings,
        "spec": spec,
    }
    if checkpoint.has_checkpoint(config.train_logdir):
        changed = run_record.check_continues(config.train_logdir, **facts)
        if changed:
            print(f"note: goes on with other settings: {'; '.join(changed)}", flush=True)
        record = run_record.read(config.train_logdir) or {}
        note_new_order(record, streams)
        initial_run = record.get("initial_run")
    else:
        initial_run = _initial_run(config, spec)
    with sole_run, Interruption() as interruption, devices.naming_lost_workers(strategy):
        with strategy.scope():
            build = model_builder(model_config, spec, data_config.train_crop_size, seed=config.seed)
            method = method_class(
                build_model=build,
                spec=spec,
                config=config,
                settings=settings,
                over_replicas=model_config.sync_batch_norm and replicas > 1,
            )
            check_crop_size("train_crop_size", data_config.train_crop_size, method.model)
            _check_reestimation(method, config)
            _initialise_networks(method, config)
            ema = _ema(method, build, config)
        data.mean_pixel = method.model.mean_pixel
        print(devices.describe(strategy), flush=True)
        parameters = sum(v.shape.num_elements() for v in method.model.trainable_variables)
        print(
            f"network: {model_config.model_variant}, {parameters / 1e6:.2f} million trainable "
            f"parameters; method: {config.method}",
            flush=True,
        )
        print(data.describe(), flush=True)
        if spec.seen_unseen is not None:
            print(_describe_split(spec), flush=True)
        _note_leaks(data_config, spec)
        if is_chief and not _is_complete(config):
            extra = {
                "num_replicas": replicas,
                "initial_run": initial_run,
                "drawn_by": data.drawn_by,
            }
            run_record.write(config.train_logdir, **facts, extra=extra)
        trainer = Trainer(
            method=method,
            strategy=strategy,
            config=config,
            iterator=None,
            interruption=interruption,
            mixed_precision=model_config.mixed_precision,
            ema=ema,
        )

        def start_at(step: int) -> None:
            trainer.iterator = data.iterator(step)

        try:
            code = run(
                trainer=trainer,
                config=config,
                interruption=interruption,
                images_per_step=sum(stream.batch_size for stream in streams.values()),
                describe_batch=data.describe_batch,
                write_panels=(
                    data.panel_writer(method, spec, is_chief)
                    if config.save_summaries_images
                    else None
                ),
                start_at=start_at,
                is_chief=is_chief,
            )
            if code == 0 and config.reestimate_batch_norm:
                if is_chief:
                    code = _reestimate(build, data, config, interruption)
                # The other workers stay until the chief is done.
                code = trainer.agreement.largest(code)
            return code
        except tf.errors.OpError:
            data.explain()
            raise
        finally:
            data.write_bad_records()


def note_new_order(record: Mapping[str, Any], streams: Mapping[str, Any]) -> None:
    """Says so where a saved run goes on with other images than the version that began it had.

    Args:
      record: config.json of the run; older ones do not tell how streams were drawn.
      streams: what the method asks of the data.
    """
    from tfseg.data import pipeline

    if "drawn_by" in record:
        return
    drawn_by = pipeline.drawn_by(streams)
    for name, stream in streams.items():
        if drawn_by[name] != stream.split:
            print(
                f"note: two streams read split '{stream.split}'. In every step so far they had the "
                f"same images, with the same crops. From here on stream '{name}' has an order and "
                "crops of its own, so the numbers differ from those of an earlier version.",
                flush=True,
            )


def _initialise_networks(method: Any, config: TrainConfig) -> None:
    """Initialises every network of the method; a run that resumes overwrites this."""
    from tfseg.weights import checkpoint

    if checkpoint.has_checkpoint(config.train_logdir):
        return
    if not config.pretrained_weights and not config.tf_initial_checkpoint:
        print(
            "note: neither --pretrained_weights nor --tf_initial_checkpoint: the backbone starts "
            "from random values",
            flush=True,
        )
    for part in method.stored().values():
        network = part.network
        # A teacher that is not trained becomes a copy of the network before the first step.
        if network.trainable_variables:
            random = _initialise(network, config, part.heads)
            if network is method.model:
                method.check_initial_weights(random)


def _ema(method: Any, build: Any, config: TrainConfig) -> Any:
    """Returns the network of averaged weights, equal to the model at the start; or None."""
    from tfseg.methods import teacher

    if not config.ema_decay:
        return None
    ema = method.build(build)
    teacher.copy(method.model, to=ema)
    return ema


def _is_complete(config: TrainConfig) -> bool:
    """Returns whether nothing is left to train, so that the run's files stay as they are."""
    from tfseg.weights import checkpoint

    prefix = checkpoint.newest(config.train_logdir)
    step = None if prefix is None else checkpoint.step_of(prefix)
    return step is not None and step >= config.training_number_of_steps


def _check_reestimation(method: Any, config: TrainConfig) -> None:
    """Insists that there are statistics to measure, where the user asks for it.

    Raises:
      UserError: no batch norm of the network learns statistics.
    """
    from tfseg.runs import reestimation

    if config.reestimate_batch_norm and not reestimation.learning_norms(method.model):
        raise UserError(
            "--reestimate_batch_norm has nothing to do: no batch norm of this network learns "
            "statistics.",
            where="--reestimate_batch_norm",
            received=config.reestimate_batch_norm,
            accepted="--fine_tune_batch_norm, or a head with batch norm",
            fix="leave out --reestimate_batch_norm",
        )


def _reestimate(build: Any, data: "TrainingData", config: TrainConfig, interruption: Any) -> int:
    """Writes the trained network with batch norm statistics measured anew; returns an exit code."""
    from tfseg.runs import reestimation
    from tfseg.training.interruption import Stopped

    stream, batch_size, batches = data.largest_stream(config.reestimate_batch_norm)
    images = batch_size * batches
    print(f"batch norm: measuring its statistics on {images} images of stream {stream}", flush=True)

    def looked_at():
        for batch in data.first_views(stream, batch_size, batches):
            interruption.check()
            yield batch

    try:
        prefix = reestimation.write(
            config.train_logdir,
            build,
            looked_at,
            num_batches=batches,
            facts={"images": images, "batch_size": batch_size, "stream": stream},
        )
    except Stopped as stopped:
        print("batch norm: not written; run the same command again", flush=True)
        return stopped.exit_code
    print(
        f"batch norm: {prefix}; evaluate it by --checkpoint_dir={os.path.dirname(prefix)}",
        flush=True,
    )
    return 0


class TrainingData:
    """A run's streams: positioned, described, and able to say what went wrong in them."""

    # Colour of the padding; the network says which, once it is built.
    mean_pixel: tuple[float, float, float] = (127.5, 127.5, 127.5)

    def __init__(self, streams, spec, data_config, config, strategy):
        from tfseg.data import pipeline
        from tfseg.data.sources import make_sources

        self._streams, self._data, self._config = streams, data_config, config
        self._strategy = strategy
        self._sources = make_sources(streams, spec, data_config)
        self.drawn_by = pipeline.drawn_by(streams)

    def describe(self) -> str:
        """Returns one line on the data that was found."""
        parts = []
        for name, source in self._sources.items():
            index, used = source.index, len(set(source.epoch.pool.tolist()))
            left_out = f", {index.size - used} of them left out" if used < index.size else ""
            parts.append(
                f"{name}: split {source.split}, {index.size} images, "
                f"{int(index.has_mask.sum())} with masks{left_out}"
            )
        return "data: " + "; ".join(parts)

    def _dataset(self, start_step: int, part: Any) -> Any:
        from tfseg.data import pipeline

        return pipeline.make_train_dataset(
            self._streams,
            self._sources,
            self._data,
            mean_pixel=self.mean_pixel,
            seed=self._config.seed,
            start_step=start_step,
            part=part,
        )

    def iterator(self, start_step: int) -> Any:
        """Returns the distributed iterator of batches from a step on."""
        from tfseg.data import pipeline

        def of_worker(context):
            part = pipeline.Slice(
                pipeline=context.input_pipeline_id,
                num_pipelines=context.num_input_pipelines,
                replicas=context.num_replicas_in_sync // context.num_input_pipelines,
            )
            return self._dataset(start_step, part)

        return iter(self._strategy.distribute_datasets_from_function(of_worker))

    def largest_stream(self, num_images: int) -> tuple[str, int, int]:
        """Chooses the images on which batch norm is measured anew.

        Args:
          num_images: how many are asked for.

        Returns:
          The stream with most images (the first of these); the size of a batch, which is that of a
          replica's whole step, so that its memory suffices; and the number of batches, at least as
          many as give `num_images`.
        """
        sizes = {name: len(set(s.epoch.pool.tolist())) for name, s in self._sources.items()}
        together = sum(stream.batch_size for stream in self._streams.values())
        batch_size = max(1, together // self._strategy.num_replicas_in_sync)
        return max(sizes, key=sizes.__getitem__), batch_size, -(-num_images // batch_size)

    def first_views(self, name: str, batch_size: int, batches: int) -> Iterator[Any]:
        """Yields batches of a stream's first views, float32 RGB 0..255 [B, H, W, 3]."""
        from tfseg.data import pipeline

        stream = dataclasses.replace(self._streams[name], batch_size=batch_size)
        dataset = pipeline.make_train_dataset(
            {name: stream},
            {name: self._sources[name]},
            self._data,
            mean_pixel=self.mean_pixel,
            seed=self._config.seed,
        )
        for batch in dataset.take(batches):
            yield batch[name]["image"]

    def describe_batch(self, step: int) -> str:
        """Names the images of a step's global batch, by stream."""
        from tfseg.data import sampling

        parts = []
        for name, source in self._sources.items():
            numbers = sampling.step_records(
                self.drawn_by[name],
                self._streams[name].batch_size,
                source.epoch,
                seed=self._config.seed,
                step=step,
            )
            parts.append(f"{name}: {', '.join(source.index.ids[numbers])}")
        return "; ".join(parts)

    def panel_writer(self, method: Any, spec: Any, is_chief: bool, max_images: int = 4) -> Any:
        """Returns a function that makes image panels of always the same batch at a step.

        All workers make them, for they read variables together; the chief writes them.
        """
        import tensorflow as tf

        from tfseg.data import pipeline
        from tfseg.inference.draw import panel

        batch = next(iter(self._dataset(0, pipeline.Slice())))
        batch = tf.nest.map_structure(lambda x: x[:max_images], batch)
        predict = tf.function(method.panels)
        logdir = self._config.train_logdir
        writer = tf.summary.create_file_writer(logdir) if is_chief else None

        def write(step: int) -> None:
            panels = {name: value.numpy() for name, value in predict(batch).items()}
            if not panels or writer is None:
                return
            rows = [panel(row, spec) for row in zip(*panels.values())]
            with writer.as_default(step=step):
                tf.summary.image(", ".join(panels), rows, max_outputs=max_images)
            writer.flush()

        return write

    def explain(self) -> None:
        """Raises the user's error behind a failed pipeline, if there is one."""
        for source in self._sources.values():
            source.explain()

    def write_bad_records(self) -> None:
        """Lists the records that --skip_bad_records replaced."""
        lines = [line for source in self._sources.values() for line in source.bad_records()]
        if lines:
            path = os.path.join(self._config.train_logdir, "bad_records.txt")
            with open(path, "w") as file:
                file.write("\n".join(lines) + "\n")
            print(f"{len(lines)} damaged records were replaced by others: {path}", flush=True)


# Evaluation and pictures ------------------------------------------------------------------------


def _wait_for_first_checkpoint(config: EvalConfig) -> None:
    """Returns once there is a checkpoint, so that its run's config.json can be read."""
    from tfseg.inference.watch import exiting_on_sigterm, watch_checkpoints

    watch = watch_checkpoints(config.checkpoint_dir, config.eval_interval_secs, 1)
    with exiting_on_sigterm():
        next(watch)


def _network_and_spec(data_config, checkpoint_dir, crop_flag, crop_size, *, with_classifier=False):
    """Builds the network that a checkpoint needs.

    Returns:
      (network, spec of the data, model settings).

    Raises:
      UserError: a flag contradicts the training run, or it had other classes than the data.
    """
    from tfseg.data.evaluation_batches import UNPADDED
    from tfseg.models import model_builder

    record = run_record.read(checkpoint_dir, of_run=True)
    where = run_record.path_of(checkpoint_dir)
    model_config = flags.read(
        ModelConfig,
        saved=None if record is None else record["model"],
        may_differ=run_record.MAY_DIFFER,
        where=where,
    )
    if record is not None:
        flags.check_saved(DataConfig, record["data"], where=where)
        _check_widths(model_config, checkpoint_dir, where)
    is_unpadded = tuple(crop_size or ()) == UNPADDED
    if not is_unpadded:
        check_sides(crop_flag, crop_size)
    spec = _spec_of(data_config, record)
    build = model_builder(model_config, spec, tuple(crop_size))
    model = build(with_classifier=with_classifier)
    if not is_unpadded:
        check_crop_size(crop_flag, crop_size, model)
    return model, spec, model_config


# Wider layers than these would take long to make before their shapes were found to be others.
_UNSUSPICIOUS_WIDTH = 4096
# Channels of MobileNetV2's last block.
_MOBILENET_WIDTH = 320


def _check_widths(config: ModelConfig, checkpoint_dir: str, where: str) -> None:
    """Compares the widths of a network that config.json asks for with its checkpoint.

    Raises:
      UserError: one is larger than anything in the checkpoint.
    """
    from tfseg.weights import checkpoint

    prefix = checkpoint.newest(checkpoint_dir)
    if prefix is None:
        return
    shapes = checkpoint.open_reader(prefix).get_variable_to_shape_map().values()
    widest = max((max(shape, default=1) for shape in shapes), default=1)
    kernel = max((shape[0] for shape in shapes if len(shape) == 4), default=1)
    widths = {
        "aspp_convs_filters": config.aspp_convs_filters,
        "decoder_filters": config.decoder_filters,
        "projection_dim": config.projection_dim or 1,
        "divisible_by": config.divisible_by or 1,
        "depth_multiplier": config.depth_multiplier * _MOBILENET_WIDTH,
    }
    allowed = dict.fromkeys(widths, max(widest, _UNSUSPICIOUS_WIDTH))
    widths["logits_kernel_size"], allowed["logits_kernel_size"] = config.logits_kernel_size, kernel
    for name, width in widths.items():
        if width > allowed[name]:
            raise UserError(
                f"{run_record.NAME} asks for a larger network than the checkpoint holds.",
                where=f"{where}, model.{name}",
                received=getattr(config, name),
                accepted=f"the value of the run; the widest variable of {prefix} has {widest}, "
                f"the largest kernel {kernel}",
                fix="restore the file; or delete it and give the model flags on the command line",
            )


def _evaluate(argv: list[str]) -> int:
    config = flags.read(EvalConfig)
    data_config = flags.read(DataConfig)

    from tfseg.inference.settings import uses_scores
    from tfseg.inference.watch import evaluate_repeatedly
    from tfseg.training import devices

    strategy = devices.make_evaluation_strategy(config.num_clones)
    _wait_for_first_checkpoint(config)
    with strategy.scope():
        model, spec, model_config = _network_and_spec(
            data_config,
            config.checkpoint_dir,
            "eval_crop_size",
            config.eval_crop_size,
            with_classifier=config.weakly or uses_scores(config),
        )
    print(devices.describe(strategy), flush=True)
    evaluate_repeatedly(
        model,
        strategy,
        spec,
        data_config,
        config,
        prediction_with_upsampled_logits=model_config.prediction_with_upsampled_logits,
        unseen_masks=_unseen_masks(config.checkpoint_dir),
    )
    return 0


def _unseen_masks(checkpoint_dir: str) -> dict[str, Any]:
    """Returns by which settings of a run, or one before it, masks of unseen classes acted."""
    told = run_record.told(run_record.read(checkpoint_dir)) or {}
    return {name: told.get(name) for name in ("oracle_layout", "drop_images")}


def _visualize(argv: list[str]) -> int:
    config = flags.read(VisConfig)
    data_config = flags.read(DataConfig)

    from tfseg.inference.draw import draw
    from tfseg.inference.settings import uses_scores
    from tfseg.weights import checkpoint

    prefix = checkpoint.newest(config.checkpoint_dir)
    if prefix is None:
        raise UserError(
            "The directory holds no checkpoint.",
            where="--checkpoint_dir",
            received=config.checkpoint_dir,
            fix="train first, or give the directory of a training run",
        )
    model, spec, model_config = _network_and_spec(
        data_config,
        prefix,
        "vis_crop_size",
        config.vis_crop_size,
        with_classifier=uses_scores(config),
    )
    step = checkpoint.load_network(model, prefix, config.network)
    print(f"checkpoint: {prefix}", flush=True)
    draw(
        model,
        spec,
        data_config,
        config,
        prefix=prefix,
        step=step,
        prediction_with_upsampled_logits=model_config.prediction_with_upsampled_logits,
    )
    return 0
