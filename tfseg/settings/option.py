"""One setting: a field of a frozen dataclass that is also a flag with its help."""

import dataclasses
from typing import Any


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] | None = None,
    multi: bool = False,
    required: bool = False,
    dead: bool = False,
    unsupported: str | None = None,
    limits: tuple[float | None, float | None] = (None, None),
) -> Any:
    """A dataclass field that is also a flag.

    Args:
      default: the value when the flag is absent.
      help: the flag's help, one or two sentences, with units.
      choices: accepted values of a string flag.
      multi: a tuple given by repeating the flag (`--atrous_rates=6 --atrous_rates=12`);
        tuples are otherwise one comma-separated value (`--train_crop_size=513,513`).
      required: the program cannot run without it.
      dead: accepted for old command lines, without effect.
      unsupported: why any value other than the default is refused.
      limits: smallest and largest accepted value of a number; None: no limit.
    """
    return dataclasses.field(
        default=default,
        metadata={
            "help": help,
            "choices": choices,
            "multi": multi,
            "required": required,
            "dead": dead,
            "unsupported": unsupported,
            "limits": limits,
        },
    )
