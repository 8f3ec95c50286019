"""What an installed wheel must do. Run by a Python that has the wheel, torch and nothing else.

python .ci/wheel_check.py [DIRECTORY of the wheel and the source archive, to look into]`
"""

from __future__ import annotations

import importlib.metadata
import io
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import torch

import drocc_ext

LARGEST = 10 * 2**20


def check_installation() -> None:
    """The package comes from the wheel, and both of its libraries are in use."""
    home = Path(drocc_ext.__file__).resolve()
    assert home.is_relative_to(sysconfig.get_path("purelib")), home
    assert importlib.metadata.version("drocc-ext") == drocc_ext.__version__
    info = drocc_ext.build_info()
    assert info["native_cpu"] == "loaded" and info["version"] == drocc_ext.__version__, info
    said = subprocess.run(
        [Path(sys.executable).with_name("drocc-ext"), "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout == f"drocc-ext {drocc_ext.__version__}\n", said.stdout


def check_operators() -> None:
    """Kernels against eager PyTorch."""
    h, grad = torch.randn(2, 64, 33)
    sigma = torch.rand(33) + 0.1
    steps = {
        "l2_shell_step": (h, grad, 0.3, 2.0, 1.5),
        "mahalanobis_shell_step": (h, grad, sigma, 0.3, 2.0, 1.5),
    }
    for name, arguments in steps.items():
        with drocc_ext.use_backend("native"):
            fused = getattr(drocc_ext.ops, name)(*arguments)
        with drocc_ext.use_backend("eager"):
            torch.testing.assert_close(fused, getattr(drocc_ext.ops, name)(*arguments))


def check_estimator() -> None:
    """A detector finds what is far away."""
    rng = np.random.default_rng(0)
    detector = drocc_ext.DROCC(hidden=32, random_state=0).fit(rng.normal(size=(300, 5)))
    far = rng.normal(8.0, 1.0, size=(50, 5))
    assert detector.predict(far).mean() > 0.9


def check_archives(directory: Path) -> None:
    """Size, tag, no path of the machine that built; a whole source archive."""
    (wheel,) = directory.glob("*.whl")
    (source,) = directory.glob("*.tar.gz")
    print(wheel.name, wheel.stat().st_size, source.name, source.stat().st_size)
    assert max(wheel.stat().st_size, source.stat().st_size) < LARGEST
    assert re.search(r"-manylinux_2_\d+_", wheel.name), wheel.name
    with zipfile.ZipFile(wheel) as files:
        names = files.namelist()
        assert {name.split("/")[0].split("-")[0] for name in names} == {"drocc_ext"}, names
        libraries = [name for name in names if re.search(r"\.so$", name)]
        assert len(libraries) == 2, libraries
        for name in libraries:
            content = files.read(name)
            paths = re.findall(rb"(?:/[\w.+-]+)+/(?:torch/lib|site-packages)[\w/.-]*", content)
            assert [path for path in paths if path != b"/../torch/lib"] == [], (name, paths)
            if "libdrocc_cpu" in name:
                assert b"$ORIGIN/../torch/lib" in content, name
    with tarfile.open(fileobj=io.BytesIO(source.read_bytes())) as archive:
        have = {name.partition("/")[2] for name in archive.getnames()}
    for needed in ("CMakeLists.txt", "csrc/module.cpp", "csrc/math/l2_shell.h", "LICENSE"):
        assert needed in have, needed


check_installation()
check_operators()
check_estimator()
if len(sys.argv) > 1:
    check_archives(Path(sys.argv[1]))
print(f"drocc_ext {drocc_ext.__version__} with torch {torch.__version__}: the wheel works")
