"""Table 5: ImageNet-10 one against all with MobileNetV2, where the images are at hand."""

from __future__ import annotations

import functools
import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.paper.experiment import Compute, Content, Experiment, Options, by_seed, summary
from benchmarks.paper.hyperparameters import hyperparameters
from benchmarks.paper.pages import filled
from drocc_ext import DROCCLoss, SearchConfig, Trainer, metrics
from drocc_ext.demo.reporting import markdown_table

DIRECTORIES = ("imagenet10", "imagenette2")
SIZE = 224
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SUFFIXES = {".jpeg", ".jpg", ".png"}

# Name in the paper's table -> names that a folder of the class may have: also the WordNet id, which
# names it in ImageNet and in imagenette.
FOLDERS = {
    "tench": "n01440764",
    "english springer": "n02102040",
    "cassette player": "n02979186",
    "chain saw": "n03000684",
    "church": "n03028079",
    "french horn": "n03394916",
    "garbage truck": "n03417042",
    "gas pump": "n03425413",
    "golf ball": "n03445777",
    "parachute": "n03888257",
}

# AUC in percent: DROCC, nearest neighbour, DeepSVDD.
PAPER = {
    "tench": ("70.2 +- 1.7", "65.6", "65.1 +- 1.0"),
    "english springer": ("70.5 +- 5.0", "56.4", "66.5 +- 3.2"),
    "cassette player": ("71.2 +- 1.0", "47.7", "60.5 +- 5.4"),
    "chain saw": ("68.6 +- 1.9", "45.2", "59.4 +- 4.1"),
    "church": ("67.5 +- 4.2", "61.4", "56.3 +- 4.2"),
    "french horn": ("77.0 +- 1.7", "50.5", "53.1 +- 6.5"),
    "garbage truck": ("69.1 +- 2.3", "54.2", "62.2 +- 4.4"),
    "gas pump": ("69.9 +- 0.6", "47.4", "56.7 +- 1.5"),
    "golf ball": ("70.7 +- 3.8", "70.4", "72.2 +- 3.4"),
    "parachute": ("93.5 +- 1.4", "75.9", "81.4 +- 3.7"),
}


class ImageFolder(Dataset[tuple[Tensor, Tensor]]):
    """Images of class folders, read when asked for: (`[3, size, size]`, 1 = normal or 0).

    Each is scaled until its shorter side is `size`, cropped to the middle, and its channels are
    normalized by ImageNet's mean and deviation.

    Args:
        folder: Has one folder for each class, of JPEG or PNG files.
        normal: Name of the normal class's folder.
        only_normal: Leave out the other classes.
        size: Pixels of a side.

    Raises:
        ValueError: If there is no such folder or no image in it, or Pillow is missing.
    """

    def __init__(
        self, folder: Path, normal: str, only_normal: bool = False, size: int = SIZE
    ) -> None:
        if importlib.util.find_spec("PIL") is None:
            raise ValueError("imagenet: Pillow must be installed (pip install pillow), got none")
        if not (folder / normal).is_dir():
            raise ValueError(f"imagenet: {folder} must hold a folder {normal}, got none")
        names = [normal] if only_normal else sorted(p.name for p in folder.iterdir() if p.is_dir())
        self.files: list[tuple[Path, bool]] = []
        for name in names:
            paths = sorted((folder / name).iterdir())
            found = [(p, name == normal) for p in paths if p.suffix.lower() in _SUFFIXES]
            if not found:
                raise ValueError(f"imagenet: {folder / name} must hold images, got none")
            self.files += found
        self.size = size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, at: int) -> tuple[Tensor, Tensor]:
        path, is_normal = self.files[at]
        return read_image(path, self.size), torch.tensor(float(is_normal))


def read_image(path: Path, size: int = SIZE) -> Tensor:
    """Read, scale, crop and normalize an image: `[3, size, size]`.

    Raises:
        ValueError: If it is no image.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            pixels = np.asarray(ImageOps.fit(image.convert("RGB"), (size, size)), dtype=np.float32)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"imagenet: {path} must be an image, got {error}") from error
    normalized = (pixels / 255 - np.float32(_MEAN)) / np.float32(_DEVIATION)
    return torch.from_numpy(normalized).permute(2, 0, 1).contiguous()


class MobileNetV2(nn.Module):
    """MobileNetV2 of width 1 with random weights and one logit: `[B, 3, S, S]` -> `[B, 1]`.

    Raises:
        ValueError: If the library it comes from is not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        if importlib.util.find_spec("transformers") is None:
            raise ValueError(
                "imagenet: transformers must be installed for MobileNetV2 (pip install "
                "transformers), got none"
            )
        from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

        self.network = MobileNetV2ForImageClassification(MobileNetV2Config(num_labels=1))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(pixel_values=x).logits
        return logits


def find(options: Options) -> Path | None:
    """Find the directory of `train` and `val` folders among the data; None where there is none."""
    if options.data_dir is None:
        return None
    folders = (options.data_dir / name for name in DIRECTORIES)
    return next((folder for folder in folders if folder.is_dir()), None)


def cells(options: Options) -> dict[str, Compute]:
    folder = find(options)
    if folder is None:
        return {}
    made: dict[str, Compute] = {}
    for name in list(FOLDERS)[: 1 if options.quick else None]:
        for seed in options.seeds:
            made[f"DROCC/{name}/{seed}"] = functools.partial(
                drocc_cell, folder, name, seed, options.device, options.quick
            )
    return made


def settings(options: Options) -> dict[str, Any]:
    return {"size": SIZE, **hyperparameters()["imagenet10"]}


def drocc_cell(folder: Path, name: str, seed: int, device: str, quick: bool) -> dict[str, Any]:
    """Train on the class of `train` and test on all of `val`, by the paper's Table 12."""
    table = hyperparameters()["imagenet10"]
    normal = _folder_of(folder / "train", name)
    train = ImageFolder(folder / "train", normal, only_normal=True)
    test = ImageFolder(folder / "val", _folder_of(folder / "val", name))
    batch, epochs = table["extent"]["batch_size"], table["extent"]["epochs"]
    steps = 2 if quick else table["extent"]["num_steps"]
    trainer = make_trainer(table["paper"][name], steps, seed, device)
    order = torch.Generator().manual_seed(seed)
    loader = DataLoader(train, batch, shuffle=True, generator=order)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the adversarial search travels")  # as published
        trainer.fit(loader, epochs=epochs, max_steps=1 if quick else None, seed=seed)
    labels = torch.tensor([float(is_normal) for _, is_normal in test.files])
    return {"auc": metrics.roc_auc(trainer.score(DataLoader(test, batch)), labels)}


def make_trainer(paper: dict[str, Any], num_steps: int, seed: int, device: str) -> Trainer:
    """Build network, optimizer and loss of a row of Table 12."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MobileNetV2()
    model.to(device)
    optimizer: torch.optim.Optimizer
    if paper["optimizer"] == "Adam":
        optimizer = torch.optim.Adam(model.parameters(), paper["learning_rate"])
    else:
        optimizer = torch.optim.SGD(model.parameters(), paper["learning_rate"], momentum=0.9)
    search = SearchConfig(
        paper["radius"],
        step_size=paper["step_size"],
        num_steps=num_steps,
        gamma=paper["gamma"],
    )
    return Trainer(
        model, DROCCLoss(search, mu=paper["mu"]), optimizer, device=device, progress=False
    )


def _folder_of(part: Path, name: str) -> str:
    for candidate in (FOLDERS[name], name, name.replace(" ", "_")):
        if (part / candidate).is_dir():
            return candidate
    raise ValueError(f"imagenet: {part} must hold a folder {FOLDERS[name]} or {name}, got none")


def section(content: Content) -> str:
    """Write the part of the page."""
    header = ["normal class", "DROCC"]
    header += [f"paper: {name}" for name in ("DROCC", "nearest neighbour", "DeepSVDD")]
    rows = [
        [name, summary(by_seed(content, f"DROCC/{name}", "auc")), *values]
        for name, values in PAPER.items()
    ]
    state = _MEASURED if content["cells"] else _NOT_MEASURED
    table = markdown_table(header, rows)
    return filled("imagenet", state=state, directories=DIRECTORIES, size=SIZE, table=table)


_MEASURED = "AUC in percent, trained on the images of `train`, tested on all of `val`."
_NOT_MEASURED = (
    "No images of ImageNet-10 were at hand, so nothing was measured here: the paper's values stand "
    "alone. Loader, network and training are tested on small made images."
)

EXPERIMENT = Experiment(
    name="imagenet",
    title="ImageNet-10 one against all (Table 5)",
    shows=("table5",),
    cells=cells,
    settings=settings,
    section=section,
)
