"""MNIST zeros, ones and masked zeros, in parts for training, thresholds and test."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks.paper.mnist import MNIST, load_mnist

NORMAL_DIGIT, NEGATIVE_DIGIT = 0, 1
MEAN, DEVIATION = 0.1307, 0.3081
SHARES = (0.5, 0.4, 0.2)
VALIDATION_SHARE = 0.2


class Split(NamedTuple):
    """Images of one seed, normalized, `[N, 1, 28, 28]`; close ones by the share that is masked."""

    train_normal: Tensor
    train_far: Tensor
    validation_normal: Tensor
    validation_far: Tensor
    validation_close: dict[float, Tensor]
    test_normal: Tensor
    test_far: Tensor
    test_close: dict[float, Tensor]


@functools.lru_cache(maxsize=1)
def loaded(directory: Path) -> MNIST:
    """Load MNIST; cells of one process share it."""
    return load_mnist(directory)


def split(data: MNIST, seed: int) -> Split:
    """Make the parts: a fifth of the training zeros and ones is held out for the thresholds.

    Args:
        data: Images and labels.
        seed: Seed of the split and the masks.

    Returns:
        The parts.

    Raises:
        ValueError: If a digit has fewer than two training images or no test image.
    """
    generator = torch.Generator().manual_seed(seed)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for digit in (NORMAL_DIGIT, NEGATIVE_DIGIT):
        train_images = _normalized(data.x_train[data.y_train == digit])
        test_images = _normalized(data.x_test[data.y_test == digit])
        if len(train_images) < 2 or len(test_images) == 0:
            raise ValueError(
                f"split: digit {digit} must have two training images and a test image, got "
                f"{len(train_images)} and {len(test_images)}"
            )
        held_out = math.ceil(VALIDATION_SHARE * len(train_images))
        order = torch.randperm(len(train_images), generator=generator)
        parts.append((train_images[order[held_out:]], train_images[order[:held_out]], test_images))
    (train_normal, validation_normal, test_normal), (train_far, validation_far, test_far) = parts
    validation_close = {share: masked(validation_normal, share, generator) for share in SHARES}
    test_close = {share: masked(test_normal, share, generator) for share in SHARES}
    return Split(
        train_normal,
        train_far,
        validation_normal,
        validation_far,
        validation_close,
        test_normal,
        test_far,
        test_close,
    )


def masked(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Set a share of the pixels, drawn over the pixels of all images together, to the least value.

    Args:
        images: `[N, *]`.
        share: In [0, 1]; that many pixels, rounded down.
        generator: Source of the draw.

    Returns:
        `[N, *]`, a copy.

    Raises:
        ValueError: If share is out of range.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"masked: share must be between 0 and 1, got {share}")
    pixels = images.flatten().clone()
    drawn = torch.randperm(len(pixels), generator=generator)[: int(share * len(pixels))]
    pixels[drawn] = images.min()
    return pixels.reshape(images.shape)


def counts(data: MNIST) -> dict[str, int]:
    """Count the images of both digits, by "train 0", "test 1" and so on."""
    return {
        f"{part} {digit}": int((labels == digit).sum())
        for part, labels in (("train", data.y_train), ("test", data.y_test))
        for digit in (NORMAL_DIGIT, NEGATIVE_DIGIT)
    }


def _normalized(images: npt.NDArray[np.uint8]) -> Tensor:
    scaled = torch.from_numpy(np.ascontiguousarray(images)).float() / 255
    return ((scaled - MEAN) / DEVIATION)[:, None]
