"""What the published trainers compute, operation by operation, in words of our own.

Stands in for a checkout of microsoft/EdgeML. It has the published costs and faults on purpose: two
device-wide casts per batch, a new constant per step, projections that stay in the autograd graph, a
multiplier drawn 40 times for each row. The order of operations and of random numbers is the
published one, so that the losses printed are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn


class _Loop:
    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        lamda: float,
        radius: float,
        gamma: float,
        device: torch.device,
    ) -> None:
        self.model, self.optimizer, self.device = model, optimizer, device
        self.lamda, self.radius, self.gamma = lamda, radius, gamma

    def _fit(
        self,
        loader: Iterable[Any],
        after_epoch: Callable[[], str],
        rate: float,
        schedule: Callable[..., Any],
        epochs: int,
        warmup: int,
        step_size: float,
        num_steps: int,
    ) -> None:
        self.step_size, self.num_steps = step_size, num_steps
        for epoch in range(epochs):
            self.model.train()
            schedule(epoch, epochs, warmup, rate, self.optimizer)
            sums: list[Any] = [0, torch.zeros(1)]
            count = 0
            for x, y, *_ in loader:
                count += 1
                x, y = x.to(self.device).to(torch.float), y.to(self.device).to(torch.float)
                y = y.squeeze()
                self.optimizer.zero_grad()
                total = clean = self._loss(x, y)
                sums[0] += clean
                if epoch >= warmup:
                    against = self._adversarial(x[y == 1])
                    sums[1] += against
                    total = clean + against * self.lamda
                total.backward()
                self.optimizer.step()
            clean_mean, adv_mean = ((value / count).item() for value in sums)
            text = after_epoch()
            print(f"Epoch: {epoch}, CE Loss: {clean_mean}, AdvLoss: {adv_mean}{text}")

    def _loss(self, x: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(self.model(x).squeeze(1), y)

    def _adversarial(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _walk(self, x: Tensor, every: int, project: Callable[[Tensor], Tensor]) -> Tensor:
        at = torch.randn(x.shape).to(self.device).requires_grad_() + x
        for step in range(self.num_steps):
            with torch.enable_grad():
                target = torch.zeros(len(x), 1).to(self.device).squeeze().to(torch.float)
                (grad,) = torch.autograd.grad(self._loss(at, target), [at])
                length = torch.norm(grad, p=2, dim=tuple(range(1, grad.dim())))
                direction = grad / length.view(-1, *[1] * (grad.dim() - 1))
            with torch.no_grad():
                at.add_(self.step_size * direction)
            if (step + 1) % every == 0:
                at = x + project(at - x)
        return self._loss(at, target * 0)

    def _scores(self, loader: Iterable[Any]) -> tuple[Any, Any]:
        pairs: list[tuple[float, float]] = []
        for x, y, *_ in loader:
            logits = self.model(x.to(self.device).to(torch.float)).squeeze(1)
            pairs += zip(y.tolist(), logits.detach().cpu().tolist(), strict=True)
        labels, scores = (np.array(column) for column in zip(*pairs, strict=True))
        return labels, scores


class DROCCTrainer(_Loop):
    """DROCC as published, AUC only."""

    def train(
        self,
        train_loader: Iterable[Any],
        val_loader: Iterable[Any],
        learning_rate: float,
        lr_scheduler: Callable[..., Any],
        total_epochs: int,
        only_ce_epochs: int = 50,
        ascent_step_size: float = 0.001,
        ascent_num_steps: int = 50,
    ) -> None:
        self._fit(
            train_loader,
            lambda: f", AUC: {self.test(val_loader, 'AUC')}",
            learning_rate,
            lr_scheduler,
            total_epochs,
            only_ce_epochs,
            ascent_step_size,
            ascent_num_steps,
        )

    def test(self, test_loader: Iterable[Any], metric: str) -> float:
        self.model.eval()
        return float(roc_auc_score(*self._scores(test_loader)))

    def _adversarial(self, x: Tensor) -> Tensor:
        def project(h: Tensor) -> Tensor:
            length = torch.sqrt(torch.sum(h**2, dim=tuple(range(1, h.dim()))))
            wanted = torch.clamp(length, self.radius, self.gamma * self.radius).to(self.device)
            return (wanted / length).view(-1, *[1] * (h.dim() - 1)) * h

        return self._walk(x, 10, project)


class DROCCLFTrainer(_Loop):
    """DROCC-LF as published."""

    def train(
        self,
        train_loader: Iterable[Any],
        val_loader: Iterable[Any],
        closeneg_val_loader: Iterable[Any],
        learning_rate: float,
        lr_scheduler: Callable[..., Any],
        total_epochs: int,
        only_ce_epochs: int = 50,
        ascent_step_size: float = 0.001,
        ascent_num_steps: int = 50,
    ) -> None:
        def after_epoch() -> str:
            self._scores(val_loader)
            self._scores(closeneg_val_loader)
            return ""

        self._fit(
            train_loader,
            after_epoch,
            learning_rate,
            lr_scheduler,
            total_epochs,
            only_ce_epochs,
            ascent_step_size,
            ascent_num_steps,
        )

    def _adversarial(self, x: Tensor) -> Tensor:
        leaf = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(self._loss(leaf, torch.ones(len(x))), leaf)
        weights = grad.abs().reshape(len(x), -1)

        def project(h: Tensor) -> Tensor:
            total = weights.abs().sum(1).unsqueeze(1).repeat(1, weights.shape[1])
            sigma = weights / total * weights.shape[1]
            flat = optim_solver(sigma, h.reshape(len(x), -1), self.radius, self.gamma)
            return flat.reshape(h.shape)

        return self._walk(x, 5, project)


def optim_solver(sigma: Tensor, h: Tensor, radius: float, gamma: float) -> Tensor:
    """The best of 40 multipliers drawn for each row outside the shell (named as in EdgeML)."""
    length = torch.sqrt(torch.sum(sigma * h**2, dim=1))
    largest = sigma.max(dim=1)[0]
    low = (-1 / largest + sigma.min(dim=1)[0] * 1e-4).detach().cpu().numpy()
    ratio = gamma * radius / length
    high = (ratio / (1 - ratio) * largest).detach().cpu().numpy()
    chosen = torch.zeros(len(h), 1)
    for row in range(len(h)):
        near = bool(length[row] < radius)
        if near or bool(length[row] > gamma * radius):
            best, best_value = (0.0 if near else np.inf), np.inf
            for _ in range(40):
                draw = np.random.uniform(low[row], 0) if near else np.random.uniform(0, high[row])
                value = _moved(draw, sigma[row], h[row], radius, gamma, near)
                if value < best_value:
                    best, best_value = draw, value
            chosen[row] = best if near else 1.0 / best
    for row in range(len(h)):
        h[row, :] = h[row, :] / (1 + chosen[row] * sigma[row, :])
    return h


def _moved(
    multiplier: float, sigma: Tensor, h: Tensor, radius: float, gamma: float, near: bool
) -> Any:
    """Squared way of a row for one multiplier, infinite where it misses the shell."""
    if near:
        divisor = (1 + multiplier * sigma) ** 2 + 1e-10
        if torch.sum(h**2 * (sigma / divisor)) > radius**2:
            return torch.sum(h**2 * multiplier**2 * sigma**2 / divisor)
        return np.inf
    divisor = (multiplier + sigma) ** 2 + 1e-10
    if torch.sum(h**2 * (sigma * multiplier**2 / divisor)) < (gamma * radius) ** 2:
        return torch.sum(h**2 * sigma**2 / divisor)
    return np.inf
