"""Where a search starts: noise of the rows' shape, drawn radii; and labels by distance."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from drocc_ext.models.networks import MLP
from drocc_ext.search import SearchConfig, adversarial_search
from drocc_ext.search.noise import row_factor
from drocc_ext.training.loss import DROCCLoss


@pytest.fixture
def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def start(x, generator, **settings):
    """Where a search without steps ends, less the rows: the projected noise."""
    config = SearchConfig(1.0, step_size=0.0, num_steps=0, **settings)
    return adversarial_search(nn.Linear(x.shape[1], 1), x, config, generator=generator) - x


@pytest.mark.parametrize("shape", [(200, 3), (7, 3), (4, 9), (600, 2, 400)])
def test_factors_of_the_covariance(shape, generator):
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    factor = row_factor(x, generator=generator)
    rows, found = x.flatten(1), factor.flatten(1)
    assert factor.shape[1:] == x.shape[1:]
    if min(rows.shape) <= 512:
        expected = torch.cov(rows.T, correction=0)
        torch.testing.assert_close(found.T @ found, expected, rtol=1e-9, atol=1e-9)
        assert len(factor) == min(rows.shape)
    else:
        assert len(factor) == 512


def test_noise_of_the_rows_shape(generator):
    scales = torch.tensor([5.0, 1.0, 0.2])
    factor = row_factor(torch.randn(4000, 3, generator=generator) * scales)
    x = torch.zeros(20_000, 3)
    wide = {"gamma": math.inf, "radius": 1e-9, "noise_factor": factor}
    config = {"step_size": 0.0, "num_steps": 0, **wide}
    model = nn.Linear(3, 1)
    rows = adversarial_search(model, x, noise="rows", generator=generator, **config)
    torch.testing.assert_close(rows.std(0), scales, rtol=0.1, atol=0)
    mixed = adversarial_search(model, x, noise="mixed", generator=generator, **config)
    torch.testing.assert_close(mixed[:10_000].std(0), scales, rtol=0.1, atol=0)
    torch.testing.assert_close(mixed[10_000:].std(0), torch.ones(3), rtol=0.1, atol=0)
    half = adversarial_search(
        model, x, noise="rows", noise_scale=0.5, generator=generator, **config
    )
    torch.testing.assert_close(half.std(0), scales / 2, rtol=0.1, atol=0)


def test_radii_are_drawn_log_uniformly_and_kept(generator):
    x = torch.randn(4000, 5, generator=generator)
    norms = start(x, generator, gamma=1.0, radius_range=(0.4, 2.5)).norm(dim=1)
    assert 0.4 * 0.999 < norms.min() < 0.45 and 2.3 < norms.max() < 2.5 * 1.001
    logs = (norms.log() - math.log(0.4)) / math.log(2.5 / 0.4)
    quantiles = torch.quantile(logs, torch.tensor([0.25, 0.5, 0.75]))
    torch.testing.assert_close(quantiles, torch.tensor([0.25, 0.5, 0.75]), rtol=0, atol=0.05)
    config = SearchConfig(2.0, step_size=0.3, num_steps=4, gamma=1.0, radius_range=(0.5, 2.0))
    network = MLP(5, [8, 8])
    reached = adversarial_search(network, x, config, generator=generator) - x
    assert reached.norm(dim=1).min() >= 0.999 and reached.norm(dim=1).max() <= 4.001
    radii = config.with_drawn_radii(x, generator).radius
    assert radii.shape == (4000,) and radii.unique().numel() > 3000


def test_labels_are_the_distance_to_all_rows(generator):
    rows = torch.randn(50, 3, generator=generator)
    search = SearchConfig(
        0.8, step_size=0.1, num_steps=2, gamma=1.0, radius_range=(0.2, 3.0), method="autograd"
    )
    model = MLP(3, [6, 5])
    loss = DROCCLoss(search, mu=0.7, labels="distance", rows=rows)
    state = generator.get_state()
    terms = loss(model, rows[:20], generator=generator)
    generator.set_state(state)
    x_adv = adversarial_search(model, rows[:20], search, generator=generator)
    distance = torch.cdist(x_adv.double(), rows.double()).min(1).values
    targets = (1 - distance / 0.8).clamp(min=0).float()
    assert 0 < targets.max() < 1 and targets.unique().numel() > 1
    expected = F.binary_cross_entropy_with_logits(model(x_adv)[:, 0], targets)
    clean = F.binary_cross_entropy_with_logits(model(rows[:20])[:, 0], torch.ones(20))
    torch.testing.assert_close(terms.adversarial, expected)
    torch.testing.assert_close(terms.total, clean + 0.7 * expected)


@pytest.mark.parametrize("with_negatives", [False, True])
def test_labels_and_gradients_do_not_depend_on_the_method(with_negatives, generator):
    rows = torch.randn(300, 4, generator=generator)
    y = torch.ones(300)
    if with_negatives:
        y[::5] = 0
    model = MLP(4, [16, 12])
    found = {}
    for method in ("autograd", "auto"):
        search = SearchConfig(
            0.8,
            step_size=0.1,
            num_steps=3,
            gamma=1.0,
            radius_range=(0.4, 2.5),
            noise="mixed",
            noise_factor=row_factor(rows),
            method=method,
        )
        loss = DROCCLoss(search, labels="distance", rows=rows)
        state = generator.get_state()
        terms = loss(model, rows, y, generator=generator)
        generator.set_state(state)
        model.zero_grad()
        terms.total.backward()
        found[method] = [*terms, *(p.grad.clone() for p in model.parameters())]
    for one, other in zip(*found.values(), strict=True):
        # Rounding switches a unit here and there, which moves a point a little.
        torch.testing.assert_close(one, other, rtol=1e-2, atol=2e-4)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"noise": "pink"}, ValueError, "noise must be one of isotropic, rows, mixed"),
        ({"noise": "rows"}, TypeError, r"noise 'rows' needs noise_factor, a tensor \[K, \*\]"),
        ({"radius_range": (0.0, 1.0)}, ValueError, "radius_range must be two finite numbers"),
        ({"radius_range": (2.0, 1.0)}, ValueError, "radius_range must be two finite numbers"),
    ],
)
def test_settings_out_of_range(settings, error, words):
    with pytest.raises(error, match=words):
        SearchConfig(1.0, step_size=0.1, num_steps=1, **settings)


def test_what_does_not_fit_the_rows(generator):
    x = torch.zeros(4, 3)
    with pytest.raises(ValueError, match=r"noise_factor must have shape \[K, \*\]"):
        start(x, generator, noise="rows", noise_factor=torch.zeros(2, 5))
    search = SearchConfig(1.0, step_size=0.1, num_steps=1)
    with pytest.raises(TypeError, match="labels 'distance' need rows"):
        DROCCLoss(search, labels="distance")
    with pytest.raises(ValueError, match="labels must be one of hard, distance, got 'soft'"):
        DROCCLoss(search, labels="soft")
    assert not DROCCLoss(search, labels="distance", rows=x).state_dict()
