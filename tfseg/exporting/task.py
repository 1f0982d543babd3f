"""What a format is asked to write."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from tfseg.exporting.comparison import Segment
from tfseg.exporting.pictures import Picture
from tfseg.exporting.serving import Serving


@dataclasses.dataclass(frozen=True)
class Task:
    """A network and what its file has to hold.

    The modules that write files have these in common: `FILE`, the name in the folder of the export;
    `TAKES_ONE_SIZE`; `check(settings, network=None)`, which raises a UserError for what the format
    cannot hold, before anything is loaded and again with the network; `limits(settings)`;
    `write(task, path)`, which returns what metadata.json should tell besides; and `load(path)`, the
    file as a `comparison.Segment`.

    Attributes:
      serving: the network with padding and outputs.
      settings: the format's own.
      metadata: what goes into the file beside the network, in JSON's types.
      checkpoint: how the network itself segments an image.
      size: height and width of the images; None: any.
      calibration: images that show the ranges of the features; None: not needed.
    """

    serving: Serving
    settings: Any
    metadata: dict[str, Any]
    checkpoint: Segment
    size: tuple[int, int] | None = None
    calibration: Iterable[Picture] | None = None
