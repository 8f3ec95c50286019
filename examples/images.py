"""A folder of images and a network of one's own.

`python examples/images.py [FOLDER with train/*.png, and test/normal/*.png, test/other/*.png]`

Without a folder it draws images: stripes with noise; the others have a scratch.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from drocc_ext import DROCCLoss, SearchConfig, Trainer, suggest_radius

try:
    from PIL import Image
except ImportError:
    sys.exit("this example needs pillow: pip install pillow")

SIDE = 32


class Net(nn.Module):
    """Any module will do that gives one logit per image, `[B]` or `[B, 1]`."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.LeakyReLU(0.1), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.LeakyReLU(0.1), nn.MaxPool2d(2)),
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(32 * (SIDE // 4) ** 2, 64), nn.ReLU())
        self.logit = nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.logit(self.head(self.features(x)))


def read(folder: Path) -> Tensor:
    """Gray images `[N, 1, SIDE, SIDE]`, from -1 to 1."""
    if not any(folder.glob("*.png")):
        sys.exit(f"{folder} must be a folder of .png images, got none")
    images = [
        Image.open(path).convert("L").resize((SIDE, SIDE)) for path in sorted(folder.glob("*.png"))
    ]
    pixels = np.stack([np.asarray(image, dtype=np.float32) for image in images])
    return torch.from_numpy(pixels / 127.5 - 1)[:, None]


def draw(folder: Path) -> None:
    rng = np.random.default_rng(0)
    columns = np.arange(SIDE)
    for name, count in (("train", 400), ("test/normal", 100), ("test/other", 100)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            wave = np.sin(columns * 0.8 + rng.uniform(0, 6.28))
            image = 128 + 60 * np.tile(wave, (SIDE, 1)) + rng.normal(0, 8, (SIDE, SIDE))
            if name == "test/other":
                at = rng.integers(4, SIDE - 4)
                image[at : at + 2, 4:-4] = 250
            pixels = image.clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def main(folder: Path) -> None:
    train = read(folder / "train")
    normal, other = read(folder / "test/normal"), read(folder / "test/other")
    torch.manual_seed(0)
    model = Net()
    loss = DROCCLoss(SearchConfig.from_relative_step(suggest_radius(train)), mu=1.0)
    trainer = Trainer(model, loss, torch.optim.Adam(model.parameters(), 1e-3), progress=False)
    # A tenth of the normal images selects the epoch; it needs no anomalies.
    trainer.fit(train[40:], validation=train[:40], epochs=8, batch_size=64, seed=0)
    labels = torch.cat([torch.ones(len(normal)), torch.zeros(len(other))])  # 1 = normal
    result = trainer.evaluate((torch.cat([normal, other]), labels))
    print(f"{len(train)} images, radius {loss.search.radius:.2f}: AUC {result['auc']:.3f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as directory:
            draw(Path(directory))
            main(Path(directory))
