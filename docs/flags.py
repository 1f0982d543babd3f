"""Writes flags.md, the page of all flags, from the settings.

python docs/flags.py

A test fails where the page is not what this program would write.
"""

import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tfseg.settings import programs  # noqa: E402
from tfseg.settings.help import GROUPS, RARE_GROUPS, Entry, Help, as_text  # noqa: E402
from tfseg.settings.prediction import EvalConfig, VisConfig  # noqa: E402

PAGE = ROOT / "docs" / "flags.md"
_HEAD = """# Flags

`python docs/flags.py` makes this page from the settings. `--help` of a program shows the usual
flags with their defaults, `--help --method=slrnet` those of another method, `--helpfull` all of
them. `--flagfile=PATH` reads flags from a file, one a line. A flag that would have no effect is an
error.

An empty default means: not set. Methods and presets have other defaults for some flags; `--help
--method=NAME` shows those of a method.
"""
_PREDICTION = ("prediction", "dense CRF")


def page() -> str:
    """Returns the text of the page."""
    parts = [_HEAD]
    for title, text, sections, left_out in (
        (
            "Training",
            "`train_sup.py`, `train_wss.py` and `train_zls.py` have the same flags.",
            programs.TRAINING,
            (),
        ),
        (
            "Evaluation",
            "`eval.py` takes the network's flags from the run.",
            (EvalConfig,),
            (),
        ),
        (
            "Pictures",
            "`vis.py` also has the flags of `eval.py` under *prediction* and *dense CRF*.",
            (VisConfig,),
            _PREDICTION,
        ),
        (
            "New images",
            "`predict.py` also has the flags of `eval.py` under *prediction* and *dense CRF*.",
            programs.IMAGES,
            _PREDICTION,
        ),
        ("Export", "The flags of `export.py`.", programs.EXPORT, ()),
    ):
        parts += [f"## {title}\n", f"{text}\n"]
        parts += _tables(title, sections, left_out)
    return "\n".join(parts)


def _tables(title: str, sections: tuple, left_out: tuple[str, ...]) -> Iterator[str]:
    """Yields one table for each group of settings."""
    training = sections is programs.TRAINING
    of_program = Help(sections, training=training)
    supervised = programs.defaults_of("supervised") if training else {}
    for group in (*GROUPS, *RARE_GROUPS):
        entries = [] if group in left_out else of_program.entries(group, None)
        if not entries:
            continue
        yield f"### {title}: {group}\n"
        yield "| flag | default | what it does |"
        yield "|---|---|---|"
        yield "\n".join(_row(entry, supervised) for entry in entries) + "\n"


def _row(entry: Entry, supervised: Mapping[str, Any]) -> str:
    """Returns a line of a table; `supervised`: the defaults in which `train_sup.py` differs."""
    field = entry.field
    text = as_text(field.default)
    default = "required" if field.metadata["required"] else f"`{text}`" if text else ""
    if field.name in supervised and field.name != "method" and not entry.owner:
        default += f"; `train_sup.py`: `{as_text(supervised[field.name])}`"
    cells = (
        f"`--{field.name}`",
        default,
        _owner(entry) + field.metadata["help"],
    )
    return "| " + " | ".join(map(_escaped, cells)) + " |"


def _owner(entry: Entry) -> str:
    """Returns the choices with which a setting is heeded; Markdown's code cannot hold their bar."""
    names = [f"`{name}`" for name in entry.owner.split("|")]
    names[0] = f"`--{names[0][1:]}"
    return f"With {', '.join(names)}. " if entry.owner else ""


def _escaped(cell: str) -> str:
    """Takes their meaning from characters that Markdown has one for."""
    for character, text in (("|", r"\|"), ("*", r"\*"), ("<", "&lt;")):
        cell = cell.replace(character, text)
    return cell


if __name__ == "__main__":
    PAGE.write_text(page())
