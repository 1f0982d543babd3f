"""What pyproject.toml cannot say: the flagfiles of experiments/ travel inside the package.

They stay in experiments/, beside their results. A package directory mapped there would need every
package listed by hand and breaks an editable install's import; so building a wheel copies them.
`tfseg/shipped.py` finds them in both places.
"""

import pathlib
import shutil

from setuptools import setup
from setuptools.command.build_py import build_py

_SHIPPED = ("*.flags", "*.json")


class BuildWithFlagfiles(build_py):
    """Copies flagfiles and class splits to tfseg/experiments/ of what is built."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        source = pathlib.Path("experiments")
        for path in (path for pattern in _SHIPPED for path in source.rglob(pattern)):
            target = pathlib.Path(self.build_lib, "tfseg", path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


setup(cmdclass={"build_py": BuildWithFlagfiles})
