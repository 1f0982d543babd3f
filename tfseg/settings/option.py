"""One setting: a field of a frozen dataclass that is also a flag with its help.

What is known of a setting stands with it: where it is heeded (`needs`), whether a run may go on
with another value (`may_differ`), and under which heading the help shows it (`group`).
"""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any, ClassVar

# Whether a run may go on with another value: never; yes, and it is told; yes, without a word.
NEVER, TOLD, FREELY = "never", "told", "freely"


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] | None = None,
    words: tuple[str, ...] = (),
    multi: bool = False,
    required: bool = False,
    dead: bool = False,
    unsupported: str | None = None,
    limits: tuple[float | None, float | None] = (None, None),
    group: str | None = None,
    needs: str | tuple[str, ...] = (),
    may_differ: str | None = None,
    training: bool = False,
    remote: bool = False,
) -> Any:
    """A dataclass field that is also a flag.

    Args:
      default: the value when the flag is absent.
      help: the flag's help, one or two sentences, with units.
      choices: accepted values of a string flag.
      words: texts that a repeated flag accepts in the place of its values.
      multi: a tuple given by repeating the flag (`--atrous_rates=6 --atrous_rates=12`);
        tuples are otherwise one comma-separated value (`--train_crop_size=513,513`).
      required: the program cannot run without it.
      dead: accepted for old command lines, without effect.
      unsupported: why any value other than the default is refused.
      limits: smallest and largest accepted value of a number; None: no limit.
      group: heading of the help page; None: that of the class.
      needs: conditions under which the setting is heeded, all of them: 'name=value|value' or
        'name', which is then set (not None, not false).
      may_differ: `NEVER`, `TOLD` or `FREELY`; None: as the class has it.
      training: the setting acts in training alone; evaluation and pictures refuse it.
      remote: a path that may lie on an object store; others with a scheme are refused.
    """
    return dataclasses.field(
        default=default,
        metadata={
            "help": help,
            "choices": choices,
            "words": words,
            "multi": multi,
            "required": required,
            "dead": dead,
            "unsupported": unsupported,
            "limits": limits,
            "group": group,
            "needs": (needs,) if isinstance(needs, str) else tuple(needs),
            "may_differ": may_differ,
            "training": training,
            "remote": remote,
        },
    )


@dataclasses.dataclass(frozen=True)
class Choice:
    """An entry of a registry: something that is chosen by name and has settings of its own.

    Attributes:
      settings: its settings class.
      path: 'module:name' of what makes it, or 'module'; imported when it is needed.
    """

    settings: type
    path: str

    def load(self) -> Any:
        """Returns what `path` names."""
        module, _, name = self.path.partition(":")
        loaded = importlib.import_module(module)
        return getattr(loaded, name) if name else loaded


def owned(chooser: str, registry: Mapping[str, Choice]) -> Any:
    """A dataclass field with the own settings of what another field chooses.

    Args:
      chooser: name of that field.
      registry: its choices.
    """
    return dataclasses.field(default=None, metadata={"chooser": chooser, "registry": registry})


def is_owned(field: dataclasses.Field) -> bool:
    """Whether a field was made by `owned`."""
    return "chooser" in field.metadata


@dataclasses.dataclass(frozen=True)
class Section:
    """What settings classes have in common.

    An owned field that holds nothing, or the settings of another choice, takes the defaults.
    """

    # Heading of the help page.
    GROUP: ClassVar[str] = "other"
    # Whether a run may go on with other values.
    MAY_DIFFER: ClassVar[str] = TOLD
    # Settings of other sections that are not heeded where this one is chosen.
    UNHEEDED: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if not is_owned(field):
                continue
            choice = field.metadata["registry"].get(getattr(self, field.metadata["chooser"]))
            # `dataclasses.replace` passes those of what was chosen before.
            if choice is not None and type(getattr(self, field.name)) is not choice.settings:
                object.__setattr__(self, field.name, choice.settings())
