"""Builds the package that setup.cfg declares.

What people edit in a checkout stands in its top folder. A wheel carries these folders inside of the
package, where toolkit.catalogue looks for them.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDERS = {"ds_configs": ("*.json",), "slurm": ("*.sh",), "data_scripts": ("*.py", "*.yaml")}


class WithFolders(build_py):
    """The package with the folders beside it; an editable one finds them where they are."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for folder, patterns in FOLDERS.items():
            target = Path(self.build_lib) / "toolkit" / folder
            self.mkpath(str(target))
            for path in (found for pattern in patterns for found in Path(folder).glob(pattern)):
                self.copy_file(str(path), str(target / path.name))


setup(cmdclass={"build_py": WithFolders})
