"""Training images in the memory format channels_last."""

from __future__ import annotations

import pytest
import torch

from drocc_ext import networks
from drocc_ext.losses import DROCCLoss
from drocc_ext.search import SearchConfig
from drocc_ext.trainer import Trainer


@pytest.mark.parametrize("kind", ["tensor", "loader"])
def test_channels_last(kind: str, seed: int) -> None:
    x = torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    losses, formats = [], []
    for channels_last in (False, True):
        torch.manual_seed(seed)
        model = networks.CIFARLeNet().double()
        model.register_forward_hook(
            lambda _, given, __: formats.append(
                given[0].is_contiguous(memory_format=torch.channels_last)
            )
        )
        fitted = Trainer(
            model,
            DROCCLoss(SearchConfig.in_radii(8.0, num_steps=2)),
            torch.optim.SGD(model.parameters(), 0.1),
            channels_last=channels_last,
            progress=False,
        )
        data = x if kind == "tensor" else [x[:6], x[6:]]
        history = fitted.fit(data, epochs=2, batch_size=6, seed=seed)
        losses.append(torch.tensor([record["loss"] for record in history]))
        last = torch.channels_last if channels_last else torch.contiguous_format
        assert model.blocks[1][0].weight.is_contiguous(memory_format=last)
        assert all(formats) if channels_last else not any(formats)
        formats.clear()
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=1e-6)
