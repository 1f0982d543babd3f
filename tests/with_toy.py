"""Runs a program with the toy backbone among the backbones: `--model_variant=toy`.

python -m tests.with_toy train_wss.py --model_variant=toy ...

A backbone of four convolutions is traced in a tenth of the time that a real one takes.
"""

import runpy
import sys

import tfseg  # noqa: F401  (selects Keras 2 before TensorFlow is imported)

if __name__ == "__main__":
    if "--only_check_args" not in sys.argv:
        from tests.toy import ToyBackbone
        from tfseg.models import BACKBONES

        BACKBONES["toy"] = ToyBackbone
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
