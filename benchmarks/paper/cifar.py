"""CIFAR-10 one against all: images, and DROCC with LeNet on them."""

from __future__ import annotations

import functools
import importlib.util
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from drocc_ext import DROCCLoss, SearchConfig, Trainer, metrics
from drocc_ext.demo.methods import fit_with_linear_decay
from drocc_ext.models import networks

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


class OneClass(NamedTuple):
    """Images `[N, 3, 32, 32]`, channels normalized; labels are 1 for the normal class, else 0."""

    train: Tensor
    test: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Setting:
    """How to train; lengths are in units of the normalized channels.

    Attributes:
        radius: Radius of the sphere (gamma is 1).
        mu: Weight of the adversarial term.
        optimizer: "Adam", or "SGD" with momentum 0.9.
        learning_rate: At the start; it falls linearly to 0.
        num_steps: Steps of the search; 0 is DROCC-Rand.
        step_size: Length of a step.
        iterations: Optimizer steps.
        batch_size: Images per step.
        noise_scale: Standard deviation of the noise that a search starts from.
        project_start: Whether that noise is projected to the sphere.
    """

    radius: float
    mu: float
    optimizer: Literal["Adam", "SGD"]
    learning_rate: float
    num_steps: int
    step_size: float
    iterations: int
    batch_size: int = 64
    noise_scale: float = 1.0
    project_start: bool = True


def load(directory: Path, normal: str, train: int = 5000, test: int = 1000) -> OneClass:
    """Read one class to train on and all classes to test on.

    Args:
        directory: Directory of the data files; reads `cifar10` in it.
        normal: The normal class.
        train: Its first so many training images.
        test: The first so many test images of each class.

    Returns:
        The images.

    Raises:
        ValueError: If the class does not exist, files or images are missing, or Pillow is.
    """
    if normal not in CLASSES:
        raise ValueError(f"cifar: normal must be one of {', '.join(CLASSES)}, got {normal!r}")
    x = read(directory, normal, train)
    labels = torch.tensor([name == normal for name in CLASSES]).repeat_interleave(test)
    return OneClass(x, _test_images(directory, test), labels.float())


def read(directory: Path, name: str, count: int) -> Tensor:
    """Read the first `count` training images of a class, normalized: `[count, 3, 32, 32]`.

    Raises:
        ValueError: If files or images are missing, or Pillow is.
    """
    return _read(directory / "cifar10" / f"train_{name}.zip", "", count)


@functools.lru_cache(maxsize=1)
def _test_images(directory: Path, count: int) -> Tensor:
    path = directory / "cifar10" / "test.zip"
    return torch.cat([_read(path, f"{name}/", count) for name in CLASSES])


def _read(path: Path, prefix: str, count: int) -> Tensor:
    if not path.is_file():
        raise ValueError(f"cifar: {path} must be a file of CIFAR-10 images, got none")
    x = images(path, prefix, count)
    if len(x) < count:
        raise ValueError(f"cifar: {path} must hold {count} images {prefix}*, got {len(x)}")
    return x


def images(path: Path, prefix: str, count: int) -> Tensor:
    """Read the first `count` images of an archive whose names begin with `prefix`, normalized.

    Raises:
        ValueError: If Pillow is missing.
    """
    if importlib.util.find_spec("PIL") is None:
        raise ValueError("cifar: Pillow must be installed (pip install pillow), got none")
    from PIL import Image

    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.startswith(prefix))[:count]
        pixels = [np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in names]
    x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    mean, deviation = torch.tensor([[0.4914, 0.4822, 0.4465], [0.247, 0.243, 0.261]])
    return (x - mean[:, None, None]) / deviation[:, None, None]


def train(setting: Setting, x: Tensor, seed: int, device: str = "cpu") -> Trainer:
    """Train LeNet on images of one class.

    Mixed precision in bfloat16; the last weights stay. PyTorch's global generator of the CPU is
    left as it was.

    Args:
        setting: How.
        x: `[N, 3, 32, 32]`.
        seed: Of weights, order and noise.
        device: Where.

    Returns:
        The trainer, which scores images.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = networks.CIFARLeNet()
    model.to(device)
    optimizer: torch.optim.Optimizer
    if setting.optimizer == "Adam":
        optimizer = torch.optim.Adam(model.parameters(), setting.learning_rate)
    else:
        optimizer = torch.optim.SGD(model.parameters(), setting.learning_rate, momentum=0.9)
    search = SearchConfig(
        setting.radius,
        step_size=setting.step_size,
        num_steps=setting.num_steps,
        gamma=1.0,
        noise_scale=setting.noise_scale,
        project_start=setting.project_start,
    )
    return fit_with_linear_decay(
        model,
        DROCCLoss(search, mu=setting.mu),
        optimizer,
        x,
        steps=setting.iterations,
        batch_size=setting.batch_size,
        seed=seed,
        device=device,
        autocast_dtype=torch.bfloat16,
        channels_last=True,
    )


def auc(trainer: Trainer, x: Tensor, labels: Tensor) -> float:
    """Area under the ROC curve on labelled images."""
    return metrics.roc_auc(trainer.score(x, 256), labels)
