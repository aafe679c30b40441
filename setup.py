"""Copy the configurations and evaluation files, which stand at the top of the tree, into the package of a wheel.

Everything else about the package is declared in pyproject.toml.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

# rgtrain/paths.py finds them in this folder of the package.
CARRIED = Path("rgtrain", "carried")
FILES = ("configs/**/*.yaml", "evaluation/**/*.yaml", "evaluation/external/*.py", "requirements-cpu-nodeps.txt")


class BuildWithCarriedFiles(build_py):
    """Add the carried files to a build. An editable installation uses those of the tree."""

    def run(self) -> None:
        """Copy the carried files after the package's own."""
        super().run()
        if self.editable_mode:
            return
        for source, target in self._carried().items():
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)

    def get_source_files(self) -> list[str]:
        """Return the files of a source distribution."""
        return [*super().get_source_files(), *self._carried()]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Return the files that a build makes."""
        carried = [] if self.editable_mode else self._carried().values()
        return [*super().get_outputs(include_bytecode), *carried]

    def _carried(self) -> dict[str, str]:
        found = sorted(path for pattern in FILES for path in Path().glob(pattern))
        return {str(path): str(Path(self.build_lib, CARRIED, path)) for path in found}


setup(cmdclass={"build_py": BuildWithCarriedFiles})
