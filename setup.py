"""Drives CMakeLists.txt, which describes the whole build; the metadata is in pyproject.toml."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Builds libdrocc_cpu, `_C` and, where possible, libdrocc_cuda into the package."""

    def build_extension(self, ext: Extension) -> None:
        package_dir = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build_dir = Path(self.build_temp).resolve()
        build_dir.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake",
            "-S",
            str(ROOT),
            "-B",
            str(build_dir),
            "-G",
            "Ninja",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DDROCC_OUTPUT_DIR={package_dir}",
        ]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build_dir)], check=True)

    def copy_extensions_to_source(self) -> None:
        # setuptools knows of `_C` only; an editable install needs the operator libraries too.
        for built in (Path(self.build_lib) / "drocc_ext").glob("*"):
            if built.suffix in {".so", ".dylib", ".pyd", ".dll"}:
                shutil.copy2(built, ROOT / "drocc_ext")


setup(ext_modules=[Extension("drocc_ext._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
