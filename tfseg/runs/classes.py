"""Which classes a run knows: seen and unseen ones, their vectors, and what it was told of them."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tfseg.data import class_embeddings, class_names, class_splits
from tfseg.data.specs import load_spec
from tfseg.errors import UserError
from tfseg.runs import record as run_record
from tfseg.settings.data import DataConfig
from tfseg.settings.methods import METHODS
from tfseg.settings.methods.zero_label import ZeroLabelConfig
from tfseg.settings.network import ModelConfig
from tfseg.settings.reading import changed
from tfseg.settings.run import TrainConfig

_SPLIT_FLAGS = ("class_split", "seen_background", "exclude_validation_classes")


_VECTOR_FLAGS = ("class_embeddings", "embedding_norm")
# What a checkpoint brings from its run.
RUN_FLAGS = (*_SPLIT_FLAGS, *_VECTOR_FLAGS)


def check_split_is_given(config: DataConfig, method: str) -> None:
    """Insists that zero-label methods are told which classes are seen.

    Raises:
      UserError: --class_split is missing.
    """
    if issubclass(METHODS[method].settings, ZeroLabelConfig) and config.class_split is None:
        raise UserError(
            f"--method={method} needs to know which classes have pixel labels.",
            where="--class_split",
            accepted="the name of a published split, or a JSON file: "
            '{"seen": [names], "unseen": [names], "validation": [names], '
            '"background": name or null}',
        )


def spec_of(
    config: DataConfig, given: Collection[str], record: Mapping[str, Any] | None = None
) -> Any:
    """Returns the data set's description, with class split and word vectors where there are any.

    Args:
      config: directory, split and vectors.
      given: names of the settings that the user set himself.
      record: config.json of the run that is evaluated, whose classes and split hold; None: there
        is no such run.

    Raises:
      UserError: the data, the split or the vectors cannot be used, or are not those of the run.
    """
    spec = load_spec(config.dataset_dir, config.dataset)
    if record is not None and list(record["dataset"]["class_names"]) != list(spec.class_names):
        names = record["dataset"]["class_names"]
        raise UserError(
            "The checkpoint was trained on other classes than this data set has.",
            where=f"--checkpoint_dir, --dataset_dir={config.dataset_dir}",
            received=class_names.compared(spec.class_names, names),
            accepted=class_names.compared(names, spec.class_names),
            fix="evaluate on records made with the class names of the training records",
        )
    spec = dataclasses.replace(spec, seen_unseen=_split_of(config, given, spec, record))
    return dataclasses.replace(spec, vectors=_vectors_of(config, given, spec, record))


def _split_of(
    config: DataConfig, given: Collection[str], spec: Any, record: Mapping[str, Any] | None
) -> Any:
    """Returns the class split, None where there is none.

    Raises:
      UserError: it cannot be used, or is not that of the run.
    """
    saved = None if record is None else record["dataset"].get("split")
    if saved is not None:
        told = [flag for flag in _SPLIT_FLAGS if flag in given]
        if not told:
            return class_splits.ClassSplit.from_json(saved)
        before = {
            flag: record["data"][flag]
            for flag in _SPLIT_FLAGS
            if flag not in told and flag in record["data"]
        }
        config = dataclasses.replace(config, **before)
    if config.class_split is None:
        return None
    split = class_splits.load(config.class_split, spec, seen_background=config.seen_background)
    if config.exclude_validation_classes:
        split = split.without_validation()
    if saved is not None:
        _check_of_run("class_split", record, dataclasses.replace(spec, seen_unseen=split))
    return split


def _vectors_of(
    config: DataConfig, given: Collection[str], spec: Any, record: Mapping[str, Any] | None
) -> Any:
    """Returns the word vectors, None where none are given.

    A checkpoint holds those that its network needs.

    Raises:
      UserError: they cannot be used, or are not those of the run.
    """
    if config.class_embeddings is None:
        return None
    norm = config.embedding_norm
    if record is not None and "embedding_norm" not in given:
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


def with_projection(config: ModelConfig, spec: Any, heads: Sequence[str]) -> ModelConfig:
    """Returns the network's settings with the width of the projection head, which is the vectors'.

    Args:
      config: the network's settings.
      spec: with the word vectors, where there are any.
      heads: those with which the method works.

    Raises:
      UserError: word vectors that the method has no other use for are given for another head.
    """
    if config.head != "projection":
        if spec.vectors is not None and "projection" in heads:
            raise UserError(
                f"--class_embeddings would have no effect: --head={config.head} needs no word "
                "vectors.",
                where="--class_embeddings, --head",
                accepted="--head=projection, the default of the method",
                fix="leave out one of them",
            )
        return config
    if config.head_settings.projection_dim is None and spec.vectors is not None:
        return changed(config, projection_dim=spec.vectors.width)
    return config


def initial_run(config: TrainConfig, spec: Any) -> dict[str, Any] | None:
    """Returns what the run behind the initial checkpoint was told of labels; None: not known.

    Raises:
      UserError: it saw labels of classes that are unseen, or take no part, in this run.
    """
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


def describe(config: DataConfig, spec: Any) -> None:
    """Prints what the network is told of classes, and what in the data tells more."""
    if spec.seen_unseen is not None:
        facts = run_record.zero_label_facts(spec.to_json())
        print(f"class split {spec.seen_unseen.name}: {facts['class_split']}", flush=True)
    _note_leaks(config, spec)


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


def unseen_masks(checkpoint_dir: str) -> dict[str, Any]:
    """Returns by which settings of a run, or one before it, masks of unseen classes acted."""
    told = run_record.told(run_record.read(checkpoint_dir)) or {}
    return {name: told.get(name) for name in ("oracle_layout", "drop_images")}
