"""What a detector's network says of rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from drocc_ext.estimators.fitting import plain_torch
from drocc_ext.models.networks import MLP, MLPEnsemble, NearestMLP

__all__ = ["logits_of"]

# Units of so many rows stay in the cache in float64.
_ROWS = 512


def logits_of(
    network: nn.Module, inputs: npt.NDArray[np.float64], name: str = "DROCC"
) -> npt.NDArray[np.float64]:
    """Compute the logits of scaled rows, rounded to float32.

    Those of our own networks are computed in float64: how float32 rounds depends on how many rows
    are computed at once, and a row's score shall not.

    Args:
        network: Maps `[N, *]` to logits.
        inputs: Scaled rows `[N, *]`.
        name: Of the estimator, for an error.

    Returns:
        `[N]`.

    Raises:
        ValueError: If a module of the user's does not take rows of this shape.
    """
    kinds = [p.dtype for p in network.parameters() if p.is_floating_point()]
    # TorchScript saves tensors for a backward once it has seen one: not in inference mode.
    with plain_torch(), torch.no_grad():
        rows = torch.from_numpy(np.ascontiguousarray(inputs))
        rows = rows.to(kinds[0] if kinds else torch.float32)
        if isinstance(network, NearestMLP):
            found = network.beside(rows, _in_double(network.logits, rows).to(rows.dtype))
        elif isinstance(network, MLP | MLPEnsemble):
            found = _in_double(network, rows)
        else:
            try:
                found = network(rows)
            except RuntimeError as error:
                raise ValueError(
                    f"{name}: the network cannot score rows of shape {tuple(rows.shape[1:])} "
                    f"({str(error).splitlines()[0]})"
                ) from error
        logits = found.reshape(len(rows)).float().numpy()
    result: npt.NDArray[np.float64] = logits.astype(np.float64)
    return result


def _in_double(network: MLP | MLPEnsemble, rows: Tensor) -> Tensor:
    """Do what the network's forward does, with copies of its weights: threads may use it too."""
    members = network.members if isinstance(network, MLPEnsemble) else [network]
    found = []
    for member in members:
        assert isinstance(member, MLP)
        layers = [(t.weight.double(), t.bias.double()) for t in (*member.layers, member.logit)]
        parts = []
        for part in torch.split(rows, _ROWS):
            units = part.double()
            for weight, bias in layers[:-1]:
                units = F.linear(units, weight, bias).relu_()
            parts.append(F.linear(units, *layers[-1]))
        found.append(torch.cat(parts))
    return torch.stack(found).mean(0)
