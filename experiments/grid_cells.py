"""The cells of a grid of trainings: a method, its masks and a seed become commands.

Every command is a plain call of one of the project's programs, so that anyone can repeat it.
"""

import dataclasses
import pathlib
import shlex
from collections.abc import Iterator, Sequence

from absl import flags

from tfseg.data.specs import DatasetSpec, load_spec
from tfseg.errors import UserError

# The number of masks that means all of them, and what the splits are called.
ALL = "all"
ALL_MASKS, ALL_OTHERS, EVERY_IMAGE = "train", "unlabeled", "train_aug"
# What methods are told of the images without masks.
NOTHING, UNLABELLED, IMAGE_LABELS = "not used", "unlabelled", "image-level labels"


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of the table. Its settings stand in <settings_dir>/<name>.flags.

    Attributes:
      title: in tables.
      others: what it is told of the images without masks.
      masks: 'budget': as many as --budgets say; 'all'; 'none'.
      every_image: its second stream reads all training images, those with masks among them.
      retrained: a second training learns what the first one predicts, by <name>_retrain.flags.
      reestimated: what is evaluated is the network with its batch norm measured anew.
      evaluation: further flags of eval.py.
    """

    title: str
    others: str
    masks: str = "budget"
    settings: str | None = None
    every_image: bool = False
    retrained: bool = False
    reestimated: bool = False
    evaluation: tuple[str, ...] = ()


METHODS = {
    "supervised": Method("Supervised", NOTHING),
    "pseudoseg": Method("PseudoSeg", UNLABELLED),
    "unimatch": Method("UniMatch", UNLABELLED),
    "pseudoseg_weakly": Method("PseudoSeg", IMAGE_LABELS),
    "learning_pseudo_labels": Method(
        "Learning Pseudo Labels, retrained", IMAGE_LABELS, every_image=True, retrained=True
    ),
    "slrnet": Method(
        "SLRNet",
        IMAGE_LABELS,
        reestimated=True,
        # The classes are filtered as published. The exponent of the background is 1 there. SLRNet's
        # class-balanced loss finds too little background; 0.2 was chosen on tune_seed0.
        evaluation=("--merge_scales=masks", "--fp_cut=0.3", "--bg_pow=0.2"),
    ),
    "unimatch_weakly": Method("UniMatch", IMAGE_LABELS),
    "slrnet_labels_only": Method(
        "SLRNet",
        IMAGE_LABELS,
        masks="none",
        every_image=True,
        reestimated=True,
        # As published where no mask was trained on.
        evaluation=("--merge_scales=masks", "--fp_cut=0.3"),
    ),
    "oracle": Method("Supervised (oracle)", NOTHING, masks="all", settings="supervised"),
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What all cells share.

    Attributes:
      dataset_dir, output_dir: of records and results, as seen from the project's folder.
      settings_dir: folder of the methods' flagfiles.
      eval_split: what is measured on.
      crop: height,width to which images are padded in evaluation.
      eval_flags: further flags of eval.py, and of vis.py where it draws pseudo labels.
      extra: further flags of every training; they make a trial, which has a name.
      trial: its name, or ''.
    """

    dataset_dir: pathlib.Path
    output_dir: pathlib.Path
    settings_dir: pathlib.Path
    eval_split: str
    crop: str
    eval_flags: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    trial: str = ""


@dataclasses.dataclass(frozen=True)
class Step:
    """A command: its name in the cell's folder, and its words behind `python`."""

    name: str
    words: tuple[str, ...]

    @property
    def command(self) -> str:
        """As typed into a shell."""
        return shlex.join(("python", *self.words))

    @property
    def is_training(self) -> bool:
        return self.words[0].startswith("train_")


@dataclasses.dataclass(frozen=True)
class Cell:
    """A method with a number of masks ('all', or '0') and a seed."""

    plan: Plan
    method_name: str
    budget: str
    seed: int

    @property
    def method(self) -> Method:
        return METHODS[self.method_name]

    @property
    def name(self) -> str:
        """Of its folder."""
        parts = [self.method_name, self.budget, f"seed{self.seed}", self.plan.trial]
        return "-".join(part for part in parts if part)

    @property
    def folder(self) -> pathlib.Path:
        return self.plan.output_dir / "cells" / self.name

    @property
    def labelled_split(self) -> str | None:
        """Of the images with masks; None where there are none."""
        if self.method.masks == "none":
            return None
        return ALL_MASKS if self.budget == ALL else f"labeled_{self.budget}_seed{self.seed}"

    @property
    def other_split(self) -> str | None:
        """Of the other images; None where they are not used."""
        if self.method.others == NOTHING:
            return None
        if self.method.every_image:
            return EVERY_IMAGE
        return ALL_OTHERS if self.budget == ALL else f"unlabeled_{self.budget}_seed{self.seed}"

    @property
    def splits(self) -> tuple[str, ...]:
        """What it trains on."""
        return tuple(split for split in (self.labelled_split, self.other_split) if split)

    @property
    def trained(self) -> pathlib.Path:
        """Folder of the training whose network is evaluated."""
        return self.folder / ("retrain" if self.method.retrained else "train")

    @property
    def evaluation(self) -> str:
        """Name of the step that evaluates, and of its folder."""
        return f"evaluate_{self.plan.eval_split}"

    def steps(self) -> list[Step]:
        """Returns the commands in their order."""
        retraining = self._retraining() if self.method.retrained else []
        return [self._training(), *retraining, self._evaluation()]

    def _flagfile(self, name: str) -> str:
        return f"--flagfile={self.plan.settings_dir / name}.flags"

    def _training(self) -> Step:
        splits = ("--train_split", "--train_split_cls")
        program = "train_sup.py" if self.other_split is None else "train_wss.py"
        return Step(
            "train",
            (
                program,
                self._flagfile(self.method.settings or self.method_name),
                f"--dataset_dir={self.plan.dataset_dir}",
                *(
                    f"{flag}={split}"
                    for flag, split in zip(splits, (self.labelled_split, self.other_split))
                    if split is not None
                ),
                f"--seed={self.seed}",
                *self.plan.extra,
                f"--train_logdir={self.folder / 'train'}",
            ),
        )

    def _retraining(self) -> list[Step]:
        """Draws the first network's labels, makes records of them and trains on these."""
        plan, folder = self.plan, self.folder
        first, pictures, records = folder / "train", folder / "pseudo_labels", folder / "records"
        return [
            Step(
                "pseudo_labels",
                (
                    "vis.py",
                    f"--checkpoint_dir={first}",
                    f"--dataset_dir={plan.dataset_dir}",
                    f"--vis_split={EVERY_IMAGE}",
                    f"--vis_crop_size={plan.crop}",
                    f"--vis_logdir={pictures}",
                    "--use_image_labels",
                    "--also_save_raw_predictions",
                    *plan.eval_flags,
                ),
            ),
            Step(
                "records",
                (
                    "tfrecords_tools/build_pseudo_labels.py",
                    f"--dataset_dir={plan.dataset_dir}",
                    f"--labelled_split={self.labelled_split}",
                    f"--ids_of_split={EVERY_IMAGE}",
                    f"--pseudo_labels_dir={pictures / 'raw_segmentation_results'}",
                    "--output_split=pseudo",
                    f"--output_dir={records}",
                ),
            ),
            Step(
                "retrain",
                (
                    "train_sup.py",
                    self._flagfile(f"{self.method_name}_retrain"),
                    f"--dataset_dir={records}",
                    "--train_split=pseudo",
                    f"--seed={self.seed}",
                    f"--tf_initial_checkpoint={first}",
                    "--initialize_last_layer",
                    *plan.extra,
                    f"--train_logdir={self.trained}",
                ),
            ),
        ]

    def _evaluation(self) -> Step:
        network = self.trained / "reestimated" if self.method.reestimated else self.trained
        return Step(
            self.evaluation,
            (
                "eval.py",
                f"--checkpoint_dir={network}",
                f"--dataset_dir={self.plan.dataset_dir}",
                f"--eval_split={self.plan.eval_split}",
                f"--eval_logdir={self.folder / self.evaluation}",
                f"--eval_crop_size={self.plan.crop}",
                "--eval_batch_size=8",
                "--max_number_of_evaluations=1",
                *self.method.evaluation,
                *self.plan.eval_flags,
            ),
        )

    def flags_of(self, step: Step) -> list[str]:
        """Returns the step's program and flags, flagfiles written out.

        Two steps with the same do the same, in whichever folder the grid stands.

        Raises:
          UserError: a flagfile is not there.
        """
        program, *words = step.words
        try:
            words = flags.FlagValues().read_flags_from_files(words, force_gnu=False)
        except flags.Error as error:
            raise UserError(
                "A flagfile cannot be read.",
                where=step.command,
                received=str(error),
                accepted=f"a flagfile for each method in {self.plan.settings_dir}",
            ) from None
        return [word.replace(str(self.folder), "<cell>") for word in (program, *words)]


def records_spec(dataset_dir: str) -> DatasetSpec:
    """Returns the classes of the records; VOC's where these do not say."""
    return load_spec(dataset_dir, "pascal_voc_seg")


def cells_of(
    plan: Plan, methods: Sequence[str], budgets: Sequence[str], seeds: Sequence[int]
) -> Iterator[Cell]:
    """Yields cells in the order in which they run: by number of masks, seed and method.

    What does not depend on the number of masks comes with the first one. Supervised training on
    all masks is the oracle.
    """
    seen = set()
    for budget in budgets:
        for seed in seeds:
            for name in methods:
                masks = METHODS[name].masks
                own = {"all": ALL, "none": "0"}.get(masks, budget)
                name = "oracle" if (name, own) == ("supervised", ALL) else name
                cell = Cell(plan, name, own, seed)
                if cell.name not in seen:
                    seen.add(cell.name)
                    yield cell
