"""The help page of a program: its settings by group, with their defaults.

`--help` shows the groups that most users need, and of heads, augmentations and methods the settings
of the chosen ones; `--helpfull` shows every setting with its whole text.
"""

import dataclasses
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tfseg.settings.option import Choice
from tfseg.settings.reading import options_of, owned_of

# Every group, in the order of the page; what --help leaves to --helpfull comes last.
GROUPS = (
    "demo",
    "evaluation",
    "pictures",
    "plain images",
    "export",
    "prediction",
    "data",
    "seen and unseen classes",
    "augmentation",
    "network",
    "method",
    "training",
    "initial weights",
    "saving and logging",
)
RARE_GROUPS = (
    "network in detail",
    "optimiser",
    "precision and devices",
    "dense CRF",
    "accepted, without effect",
)
_WIDTH = 100


@dataclasses.dataclass(frozen=True)
class Entry:
    """A setting on the page.

    Attributes:
      field: its field.
      group: heading under which it stands.
      owner: 'head=low_rank' and the like; '' where it belongs to no choice.
    """

    field: dataclasses.Field
    group: str
    owner: str = ""


def entries_of(cls: type, owner: str = "") -> Iterator[Entry]:
    """Yields every setting of a section and of all that it can choose."""
    for field in options_of(cls):
        group = field.metadata["group"] or cls.GROUP
        if field.metadata["dead"] or field.metadata["unsupported"]:
            group = "accepted, without effect"
        yield Entry(field, group, owner)
    for field in owned_of(cls):
        chooser = field.metadata["chooser"]
        for name, choice in field.metadata["registry"].items():
            yield from entries_of(choice.settings, f"{chooser}={name}")


@dataclasses.dataclass(frozen=True)
class Help:
    """The help page of a program.

    Attributes:
      sections: its settings classes.
      defaults: its own defaults, by name.
      training: whether it trains; other programs have no settings of training.
    """

    sections: Sequence[type]
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    training: bool = False

    def text(self, argv: Sequence[str]) -> str:
        """Returns the page for a command line, which may choose a method and the like."""
        is_full = "--helpfull" in argv
        chosen = self._chosen(argv)
        blocks = []
        for group in (*GROUPS, *RARE_GROUPS) if is_full else GROUPS:
            lines = [
                line
                for entry in self.entries(group, None if is_full else chosen)
                for line in self._lines(entry, chosen, is_full)
            ]
            if lines:
                blocks.append("\n".join([self._title(group, chosen, is_full), *lines]))
        if not is_full:
            rest = [group for group in RARE_GROUPS if any(self.entries(group, chosen))]
            more = "; ".join(rest) or "the whole text of each"
            blocks.append("\n".join(textwrap.wrap(f"More with --helpfull: {more}.", _WIDTH)))
        return "\n\n".join(blocks)

    def _choices(self) -> Iterator[tuple[str, Any, Mapping[str, Choice]]]:
        for cls in self.sections:
            for field in owned_of(cls):
                chooser = field.metadata["chooser"]
                default = next(f.default for f in options_of(cls) if f.name == chooser)
                yield chooser, default, field.metadata["registry"]

    def _chosen(self, argv: Sequence[str]) -> dict[str, Any]:
        """Returns what is chosen: by the command line, else by the program or the method.

        The method's other defaults are among it.
        """
        text = " ".join(argv)
        chosen, of_method = {}, {}
        for chooser, default, registry in sorted(self._choices(), key=lambda c: c[0] != "method"):
            found = re.search(rf"--?{chooser}[= ](\w+)", text)
            name = found[1] if found and found[1] in registry else self.defaults.get(chooser)
            chosen[chooser] = name or of_method.get(chooser, default)
            of_method |= getattr(registry[chosen[chooser]].settings, "DEFAULTS", {})
        return {**of_method, **chosen}

    def entries(self, group: str, chosen: Mapping[str, Any] | None) -> list[Entry]:
        """Returns the settings of a group, each once.

        Args:
          group: heading.
          chosen: what is chosen, by chooser: settings of other choices are left out; None: all.
        """
        found: dict[str, Entry] = {}
        for cls in self.sections:
            for entry in entries_of(cls):
                chooser, _, name = entry.owner.partition("=")
                if entry.group != group or (entry.field.metadata["training"] and not self.training):
                    continue
                if chosen is not None and name and chosen[chooser] != name:
                    continue
                if entry.field.name in found and entry.owner:
                    before = found[entry.field.name]
                    owner = f"{before.owner}|{name}" if name not in before.owner else before.owner
                    entry = dataclasses.replace(before, owner=owner)
                found[entry.field.name] = entry
        return list(found.values())

    def _title(self, group: str, chosen: Mapping[str, Any], is_full: bool) -> str:
        title = group.upper()
        if group == "method" and not is_full:
            title += f" (--method={chosen['method']})"
        return title

    def _lines(self, entry: Entry, chosen: Mapping[str, Any], is_full: bool) -> list[str]:
        field = entry.field
        default = chosen.get(field.name, self.defaults.get(field.name, field.default))
        head = f"  --{field.name}={as_text(default)}"
        if field.metadata["required"]:
            head = f"  --{field.name}=... (required)"
        text = " ".join(field.metadata["help"].split())
        if is_full:
            owner = f"With --{entry.owner}. " if entry.owner else ""
            indent = " " * 6
            return [
                head,
                *textwrap.wrap(
                    owner + text, _WIDTH, initial_indent=indent, subsequent_indent=indent
                ),
            ]
        head = f"{head:<38} "
        short = textwrap.shorten(
            re.split(r"(?<=[.;]) ", text)[0].rstrip(";"), _WIDTH - len(head), placeholder=" ..."
        )
        return [(head + short).rstrip()]


def as_text(value: Any) -> str:
    """Returns a default as a user would write it; '' for None."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)
