"""The command `tfseg`: one name in front of every program.

The programs are those of a clone (`train_sup.py`, `tfrecords_tools/check.py`, ...), with the same
flags. A help page names its program as the user called it.
"""

import dataclasses
import difflib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from typing import NoReturn

import tfseg
from tfseg.errors import UserError, exit_code


@dataclasses.dataclass(frozen=True)
class Command:
    """A program.

    Attributes:
      about: what it does, for the list of commands.
      path: 'module:function', called with what --help says first; or the module of a converter.
      script: its file in a clone, None where it has none.
    """

    about: str
    path: str
    script: str | None = None


COMMANDS: Mapping[str, Command] = {
    "train-sup": Command("train on pixel labels", "tfseg.cli:train_sup", "train_sup.py"),
    "train-wss": Command("train with few pixel labels", "tfseg.cli:train_wss", "train_wss.py"),
    "train-zls": Command(
        "train with classes that have a name but no pixel label",
        "tfseg.cli:train_zls",
        "train_zls.py",
    ),
    "eval": Command("measure the checkpoints of a training", "tfseg.cli:evaluate", "eval.py"),
    "vis": Command("draw the predictions on records", "tfseg.cli:visualize", "vis.py"),
    "predict": Command("predict plain images", "tfseg.cli:predict", "predict.py"),
    "export": Command("write a SavedModel, TFLite or ONNX file", "tfseg.cli:export", "export.py"),
    "check": Command(
        "read every byte of a folder of records, and report what is wrong",
        "tfrecords_tools.check",
        "tfrecords_tools/check.py",
    ),
    "doctor": Command("say whether this machine can train, and how fast", "tfseg.doctor:program"),
    "demo": Command("train and evaluate on handwritten digits", "tfseg.demo:program"),
}
_CONVERT = "convert"


def _converter(about: str, name: str) -> Command:
    return Command(about, f"tfrecords_tools.{name}", f"tfrecords_tools/{name}.py")


KINDS: Mapping[str, Command] = {
    "folder": _converter("own images and masks", "build_folder"),
    "labelme": _converter("a folder of labelme", "build_labelme"),
    "coco": _converter("COCO, and annotations in its form", "build_coco"),
    "voc2012": _converter("PASCAL VOC 2012", "build_voc2012"),
    "l2id": _converter("L2ID", "build_l2id"),
    "pascal_context": _converter("PASCAL-Context", "build_pascal_context"),
    "coco_stuff": _converter("COCO-Stuff", "build_coco_stuff"),
    "digits": _converter("scenes of handwritten digits", "build_digits"),
    "pseudo_labels": _converter("predictions as masks of a new split", "build_pseudo_labels"),
    "class_embeddings": _converter("word vectors of class names", "build_class_embeddings"),
}
_HELP = ("--help", "-help", "-h", "--helpfull", "--helpshort")


def main() -> NoReturn:
    """Runs the program that the command line names.

    Raises:
      SystemExit: always; 0 for a list of commands, 2 where there is no such command, else the exit
        code of the program.
    """
    sys.exit(exit_code(_main, sys.argv[1:]))


def from_clone(name: str) -> NoReturn:
    """Runs a program of the network that was started by its file, `python train_sup.py`.

    Its imports take a while and may fail, so they stand inside the frame of `exit_code`.

    Args:
      name: in `COMMANDS`.

    Raises:
      SystemExit: always, with the exit code of the program.
    """
    sys.exit(exit_code(lambda: _function(COMMANDS[name])()))


def _main(words: list[str]) -> None:
    if not words or words[0] in _HELP:
        print(_page())
    elif words[0] == "--version":
        print(f"tfseg {tfseg.__version__}")
    elif words[0] != _CONVERT:
        command = _chosen(words[0].replace("_", "-"), COMMANDS, "command", (_CONVERT,))
        _run(command, f"tfseg {words[0]}", words[1:])
    elif len(words) == 1 or words[1] in _HELP:
        print(_page_of_kinds())
    else:
        command = _chosen(words[1].replace("-", "_"), KINDS, "kind of data")
        _run(command, f"tfseg {_CONVERT} {words[1]}", words[2:])


def _chosen(
    name: str, registry: Mapping[str, Command], what: str, besides: tuple[str, ...] = ()
) -> Command:
    """Returns an entry of a registry.

    Raises:
      UserError: there is none of this name.
    """
    if name not in registry:
        names = [*registry, *besides]
        near = difflib.get_close_matches(name, names, n=1)
        raise UserError(
            f"Unknown {what}.",
            received=name,
            accepted=", ".join(names),
            fix=f"did you mean {near[0]}?" if near else "run tfseg without arguments for a list",
        )
    return registry[name]


def _run(command: Command, called: str, words: list[str]) -> None:
    """Runs a program as if it had been started by the name that the user typed."""
    # A run's config.json keeps the command line.
    sys.argv = [called, *words]
    if ":" in command.path:
        function = _function(command)
        function(in_own_words(function.__doc__))
        return
    module = importlib.import_module(command.path)
    from tfrecords_tools import program

    module.define_flags()
    program.run(module.main, in_own_words(module.__doc__))


def _function(command: Command) -> Callable[..., None]:
    """Imports the function of a program."""
    module, _, name = command.path.partition(":")
    return getattr(importlib.import_module(module), name)


def in_own_words(text: str) -> str:
    """Returns a text in which the programs of a clone have the names that `tfseg` gives them."""
    names = {command.script: f"tfseg {name}" for name, command in COMMANDS.items()}
    names |= {kind.script: f"tfseg {_CONVERT} {name}" for name, kind in KINDS.items()}
    return re.sub(
        r"python ([\w/]+\.py)\b",
        lambda match: names.get(match[1], match[0]),
        inspect.cleandoc(text),
    )


def _page() -> str:
    lines = [
        "tfseg: label-efficient semantic segmentation with TensorFlow 2.",
        "",
        *_listed({**COMMANDS, f"{_CONVERT} KIND": Command("make records of images and masks", "")}),
        "",
        "tfseg COMMAND --help shows the flags of a command, tfseg convert the kinds of data.",
        "tfseg --version prints the version. Start with tfseg doctor, then tfseg demo.",
    ]
    return "\n".join(lines)


def _page_of_kinds() -> str:
    lines = [
        "tfseg convert KIND makes records. The kinds:",
        "",
        *_listed(KINDS),
        "",
        "tfseg convert KIND --help shows the flags.",
    ]
    return "\n".join(lines)


def _listed(registry: Mapping[str, Command]) -> list[str]:
    width = max(map(len, registry))
    return [f"  {name:<{width}}  {command.about}" for name, command in registry.items()]
