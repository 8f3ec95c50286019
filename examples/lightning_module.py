"""Lightning: the loss in a `LightningModule`, epochs by a callback, a checkpoint loaded again.

`python examples/lightning_module.py`
"""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings

import torch
from torch.utils.data import DataLoader, TensorDataset

from drocc_ext import DROCCLoss, SearchConfig, networks

try:
    import lightning.pytorch as pl
except ImportError:
    sys.exit("this example needs lightning: pip install lightning")

from drocc_ext.integrations.lightning import StartEpoch


class Detector(pl.LightningModule):
    def __init__(self, search: SearchConfig, metric: str = "mahalanobis") -> None:
        super().__init__()
        self.save_hyperparameters()  # a SearchConfig may be one
        self.model = networks.MLP(2, 64)
        self.loss = DROCCLoss(search, metric=metric)  # an attribute, so that it follows eval()

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        terms = self.loss(self.model, batch[0])
        self.log_dict(terms._asdict())
        return terms.total

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        self.log("val_objective", self.loss(self.model, batch[0]).total)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


def main() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    pl.seed_everything(0, verbose=False)
    angle = torch.rand(2000) * 6.28
    ring = torch.stack([angle.cos(), angle.sin()], 1)
    loaders = [DataLoader(TensorDataset(part), 128) for part in (ring[:1800], ring[1800:])]
    module = Detector(SearchConfig.from_relative_step(0.3))
    with tempfile.TemporaryDirectory() as directory:
        trainer = pl.Trainer(
            max_epochs=15,
            accelerator="cpu",
            callbacks=[StartEpoch()],  # the metric "mahalanobis" wants to know when an epoch begins
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=directory,
        )
        trainer.fit(module, *loaders)
        trainer.save_checkpoint(f"{directory}/last.ckpt")
        loaded = Detector.load_from_checkpoint(f"{directory}/last.ckpt").eval()
    points = torch.tensor([[0.0, 1.0], [0.0, 0.3], [0.0, 1.9]])
    with torch.no_grad():
        on, inside, outside = loaded.model(points).flatten().tolist()
    print(f"sigma of the last epoch: {[round(s, 2) for s in loaded.loss.sigma.tolist()]}")
    print(f"logits on the ring {on:.1f}, inside {inside:.1f}, outside {outside:.1f}")


if __name__ == "__main__":
    main()
