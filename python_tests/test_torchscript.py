"""TorchScript's modules, such as pretrained ones from a file, serve as the modules they are of."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from drocc_ext import DROCC, DROCCLoss, SearchConfig, Trainer, adversarial_search

pytestmark = pytest.mark.filterwarnings("ignore:.*jit:DeprecationWarning")

SEARCH = SearchConfig(radius=1.0, step_size=0.2, num_steps=3)


def plain(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh())


def from_file(module: nn.Module) -> nn.Module:
    torch.jit.save(torch.jit.script(module), file := io.BytesIO())
    file.seek(0)
    loaded: nn.Module = torch.jit.load(file)
    return loaded


FORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "scripted": torch.jit.script,
    "loaded": from_file,
    "traced": lambda module: torch.jit.trace(module.eval(), torch.randn(3, 4)).train(),
}


@pytest.fixture(params=list(FORMS))
def pair(request: pytest.FixtureRequest, seed: int) -> tuple[nn.Module, nn.Module]:
    """A module with a TorchScript part, and the same without."""
    head = nn.Linear(6, 1)
    before = plain(seed)
    part = FORMS[request.param](copy.deepcopy(before))
    return nn.Sequential(part, copy.deepcopy(head)), nn.Sequential(before, head)


def test_search_and_score(pair: tuple[nn.Module, nn.Module], seed: int) -> None:
    x, found = torch.randn(20, 4), []
    for model in pair:
        generator = torch.Generator().manual_seed(seed)
        found.append(adversarial_search(model, x, SEARCH, generator=generator))
        assert model.training
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        trainer = Trainer(model, DROCCLoss(SEARCH), optimizer, progress=False)
        found.append(trainer.score(x))
    torch.testing.assert_close(found[0], found[2])
    torch.testing.assert_close(found[1], found[3])


def test_training(pair: tuple[nn.Module, nn.Module], seed: int) -> None:
    x, scores = torch.randn(64, 4), []
    for model in pair:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        trainer = Trainer(model, DROCCLoss(SEARCH), optimizer, progress=False)
        before = trainer.score(x)
        trainer.fit(x, validation=x, epochs=3, batch_size=16, seed=seed)
        scores.append(trainer.score(x))
        assert (scores[-1] - before).abs().max() > 1e-3
    # A trace keeps the statistics that it was made with, as torch says; the others are alike.
    if not isinstance(pair[0][0], torch.jit.TopLevelTracedModule):  # type: ignore[index]
        torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-5)


def test_an_estimator_after_calls_with_gradients(
    pair: tuple[nn.Module, nn.Module], seed: int
) -> None:
    """TorchScript then runs another graph, which saves what a backward needs."""
    x = torch.randn(60, 4)
    for _ in range(3):
        pair[0](x).sum().backward()
    fitted = DROCC(network=pair[0], max_steps=5, random_state=0).fit(x.numpy())
    assert np.isfinite(fitted.decision_function(x.numpy())).all()
    assert np.isfinite(fitted.explain(x.numpy()[:3])).all()


def test_an_estimator(pair: tuple[nn.Module, nn.Module], tmp_path: Path, seed: int) -> None:
    model = pair[0]
    x = np.random.default_rng(seed).normal(size=(60, 4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fitted = DROCC(network=model, max_steps=5, random_state=0).fit(x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    scores = fitted.decision_function(x)
    weights = zip(fitted.network_.parameters(), model.parameters(), strict=True)
    assert all((now - then).abs().max() > 1e-4 for now, then in list(weights)[-2:])
    assert np.isfinite(fitted.explain(x[:5])).all()
    exported, _ = fitted.to_module()(torch.from_numpy(x))
    np.testing.assert_allclose(exported, scores, rtol=1e-5, atol=1e-5)
    fitted.save(tmp_path / "model")
    loaded = DROCC.load(tmp_path / "model", network=model)
    np.testing.assert_array_equal(loaded.decision_function(x), scores)
