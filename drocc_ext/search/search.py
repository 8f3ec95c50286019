"""The adversarial search of Algorithm 1: in a shell around each row, the point most normal."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from drocc_ext._checks import as_float, as_int, describe
from drocc_ext.models.modules import frozen, unwrap
from drocc_ext.ops import (
    l2_shell_step_,
    mahalanobis_shell_step_,
    normalized_ascent_,
    project_l2_shell_,
    project_mahalanobis_shell_,
)
from drocc_ext.ops.mahalanobis_shell import Solver
from drocc_ext.search.gradients import (
    compiled_gradient,
    input_gradient,
    search_in_hidden_space,
)
from drocc_ext.search.noise import gaussian

Method: TypeAlias = Literal["auto", "autograd", "compiled", "hidden"]

_SOLVERS = ("newton", "grid")
_METHODS = ("auto", "autograd", "compiled", "hidden")


@dataclass(frozen=True)
class SearchConfig:
    """Settings of `adversarial_search`, checked once.

    Attributes:
        radius: Inner radius of the shell in units of the input, > 0 and finite; or a floating-point
            tensor `[B]`, one radius for each row of the batch that is searched.
        step_size: Length of one step in units of the input, >= 0 and finite (eta in Algorithm 1).
        num_steps: Number of ascent steps, >= 0 (m in Algorithm 1); 0 is DROCC-Rand.
        gamma: Outer radius divided by inner radius, >= 1; `math.inf` for no outer bound.
        project_every: Project after every this many steps, >= 1, and always after the last.
        noise_scale: Standard deviation of the starting noise, >= 0 and finite (1 in the paper).
        project_start: Project the starting noise too; False is Algorithm 1 to the letter.
        freeze: Search in the `frozen` model: no batch statistics, no dropout.
        solver: How to project in the Mahalanobis metric; the l2 shell needs none. "newton" gives
            the nearest point, "grid" is the paper's search over a grid.
        grid_points: Points of that grid, >= 2.
        method: How gradients are computed, see `adversarial_search`.

    Raises:
        TypeError: If a setting has the wrong type.
        ValueError: If a setting is out of range.
    """

    radius: float | Tensor
    step_size: float
    num_steps: int
    gamma: float = 2.0
    project_every: int = 1
    noise_scale: float = 1.0
    project_start: bool = True
    freeze: bool = True
    solver: Solver = "newton"
    grid_points: int = 64
    method: Method = "auto"

    def __post_init__(self) -> None:
        """Refuse settings of the wrong type or out of range."""
        _check_settings(
            "SearchConfig",
            self.radius,
            self.step_size,
            self.num_steps,
            self.gamma,
            self.project_every,
            self.noise_scale,
            self.solver,
            self.grid_points,
            self.method,
        )

    @classmethod
    def in_radii(cls, *args: Any, **settings: Any) -> SearchConfig:
        """Do what `from_relative_step` does, under its former name, for one release."""
        return cls.from_relative_step(*args, **settings)

    @classmethod
    def from_relative_step(
        cls, radius: float, *, step_size: float = 0.1, num_steps: int = 5, **settings: Any
    ) -> SearchConfig:
        """Make a configuration with the step size in units of the radius; the default preset.

        What a search finds depends on the way it goes, `num_steps * step_size`, much more than on
        the number of steps: 5 steps of 0.1 radii take a tenth of the forwards of 50 steps of 0.01
        radii, for the same AUC on eight of nine data sets; the other, MNIST, wants 15 steps
        (`benchmarks/training/FEWER_STEPS.md`).

        Args:
            radius: Inner radius of the shell in units of the input, > 0 and finite.
            step_size: Length of one step in radii, >= 0 and finite.
            num_steps: Number of ascent steps.
            settings: The other settings.

        Returns:
            The configuration.

        Raises:
            TypeError: If a setting has the wrong type.
            ValueError: If a setting is out of range.
        """
        caller = "SearchConfig.from_relative_step"
        size = as_float(caller, "step_size", step_size) * as_float(caller, "radius", radius)
        return cls(radius=radius, step_size=size, num_steps=num_steps, **settings)


def adversarial_search(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    radius: float | Tensor,
    step_size: float,
    num_steps: int,
    gamma: float = 2.0,
    project_every: int = 1,
    noise_scale: float = 1.0,
    project_start: bool = True,
    generator: torch.Generator | None = None,
    freeze: bool = True,
    sigma: Tensor | None = None,
    solver: Solver = "newton",
    grid_points: int = 64,
    method: Method = "auto",
) -> Tensor:
    """Find, for each row of x, a point of its shell that the model takes for normal (Algorithm 1).

    Starts from Gaussian noise h and repeats `h <- project(h + step_size * g / ||g||)`, where g is
    the gradient of the logit at `x + h` and `project` gives the nearest h with
    `radius <= ||h|| <= gamma * radius`. Algorithm 1 takes the gradient of the loss at the anomalous
    label. That is a positive multiple of g where rows are independent, so the normalized step is
    the same. Rows are not independent where BatchNorm uses batch statistics (`freeze=False` in
    training mode): g is then the gradient of the sum of the logits.

    With `sigma` the shell is that of DROCC-LF (Algorithm 2): `||h||` above becomes the Mahalanobis
    norm `sqrt(sum_j sigma_j h_j^2)`, and `project` still gives the l2-nearest h. The step does not
    change, its length is in the l2 norm. A row with a NaN, infinite or negative sigma becomes NaN,
    one whose sigma is all zero is not projected; neither touches another row.

    The iterates do not depend on `method` in exact arithmetic. "autograd" differentiates the model
    at every step. "hidden" uses that a network which begins with a linear layer of H units sees h
    only through its image there, so that an l2 search over D inputs runs among the H units: all
    steps of a network linear - ReLU - linear are one operator where there are native kernels. In
    float32 the results agree to about 1e-6, but for rows in which rounding switches a unit; where
    `torch.set_float32_matmul_precision` allows shorter products, to about 3e-4, shell included.
    "compiled" differentiates with `torch.compile`, on a CUDA device with replay of CUDA graphs (not
    yet run on one), which takes up to minutes at the first call and pays for long trainings; the
    model must not change between calls but for its weights. "auto" is "hidden" where that is known
    to be faster, else "autograd".

    Peak memory does not depend on `num_steps`: with "autograd" it is that of one forward and
    backward of the model and two tensors of the size of x; "hidden" holds a few tensors `[B, H]`
    and one `[H, H]` instead of the activations. Nothing is read back to the host (but by "hidden"
    on networks that are not linear - ReLU - linear), and parameters get no gradients.
    Works under `torch.no_grad()`, `torch.inference_mode()` and autocast. Of a model wrapped in
    `DistributedDataParallel` the inner module is searched.

    Args:
        model: Maps `[B, *]` to one logit per row, `[B]` or `[B, 1]`, higher = more normal. Usually
            an `nn.Module`. It must not change its input in place.
        x: Rows to search around, `[B, *]`, floating point.
        radius: Inner radius of the shell; this and the other settings as in `SearchConfig`.
        step_size: Length of one step.
        num_steps: Number of steps. With 0 the noise is always projected, and the model not called.
        gamma: Outer radius divided by inner radius.
        project_every: Steps per projection.
        noise_scale: Standard deviation of the starting noise.
        project_start: Whether the starting noise is projected.
        generator: Source of the noise, on the device of x; None is that device's global one.
        freeze: Whether to search in the `frozen` model. With False modules keep their modes.
        sigma: Weights of the Mahalanobis metric, >= 0, `[*]` for all rows or `[B, *]`, dtype and
            device of x, such as `ops.influence` gives. None: the l2 shell.
        solver: How to project with sigma.
        grid_points: Points of the grid of solver "grid".
        method: How gradients are computed: "auto", "autograd", "compiled" or "hidden".

    Returns:
        `x + h`: shape, dtype and device of x, no gradient history. An empty batch gives an empty
        tensor without a call of the model.

    Raises:
        TypeError: If x or sigma is not a floating-point tensor, if they differ in dtype, or if a
            setting has the wrong type.
        ValueError: If a setting is out of range, if radius, sigma or generator does not fit x, if
            the model's output is not one logit per row or does not depend differentiably on x, or
            if method "hidden" is asked for and the model or metric does not allow it.
    """
    caller = "adversarial_search"
    _check_settings(
        caller,
        radius,
        step_size,
        num_steps,
        gamma,
        project_every,
        noise_scale,
        solver,
        grid_points,
        method,
    )
    _check_input(caller, x, radius, generator)
    if sigma is not None:
        _check_sigma(caller, x, sigma)
    if x.shape[0] == 0:
        return torch.empty_like(x)
    module = unwrap(model)
    # Leaving inference mode turns gradients on, so no_grad has to come after it.
    with torch.inference_mode(False), torch.no_grad(), frozen(module) if freeze else nullcontext():
        h = _noise(x, noise_scale, generator)
        if project_start or num_steps == 0:
            if sigma is None:
                project_l2_shell_(h, radius, gamma)
            else:
                project_mahalanobis_shell_(h, sigma, radius, gamma, solver, grid_points)
        if method in ("auto", "hidden") and num_steps > 0 and sigma is None:
            found = search_in_hidden_space(
                caller,
                module,
                x,
                h,
                {
                    "radius": radius,
                    "gamma": gamma,
                    "step_size": step_size,
                    "num_steps": num_steps,
                    "project_every": project_every,
                    "project_last": True,
                },
                only_where_faster=method == "auto",
            )
            if found is not None:
                return found
        if method == "hidden" and num_steps > 0:
            raise ValueError(
                f"{caller}: method 'hidden' needs the l2 metric, rows [B, D] and a model that is "
                "linear - ReLU - linear or an nn.Sequential that begins with nn.Linear, without "
                f"hooks, got {type(module).__name__} and x of shape {tuple(x.shape)}"
            )
        compiled = None
        if method == "compiled" and num_steps > 0:
            if not isinstance(module, nn.Module):
                raise TypeError(
                    f"{caller}: method 'compiled' needs a module, got {type(module).__name__}"
                )
            compiled = compiled_gradient(module, graphs=x.is_cuda)
        x_adv = torch.empty_like(x, requires_grad=True)
        for step in range(1, num_steps + 1):
            torch.add(x, h, out=x_adv)
            grad = compiled(x_adv) if compiled else input_gradient(caller, module, x_adv)
            if step % project_every != 0 and step != num_steps:
                normalized_ascent_(h, grad, step_size)
            elif sigma is None:
                l2_shell_step_(h, grad, step_size, radius, gamma)
            else:
                mahalanobis_shell_step_(
                    h, grad, sigma, step_size, radius, gamma, solver, grid_points
                )
            del grad  # or it would live through the next forward
        return torch.add(x, h, out=x_adv).detach()


def draw_start(
    caller: str,
    x: Tensor,
    config: SearchConfig,
    radius: float | Tensor,
    generator: torch.Generator | None,
) -> Tensor:
    """Draw where an l2 search starts, as `adversarial_search` does.

    Args:
        caller: Name to begin an error with.
        x: Rows `[B, *]`.
        config: Settings of the search; its radius is not looked at.
        radius: Inner radius, a number or `[B]`.
        generator: Source of the noise.

    Returns:
        The start h, shape of x, contiguous.

    Raises:
        ValueError: If radius or generator does not fit x.
    """
    _check_input(caller, x, radius, generator)
    h = _noise(x, config.noise_scale, generator)
    return project_l2_shell_(h, radius, config.gamma) if config.project_start else h


def _noise(x: Tensor, scale: float, generator: torch.Generator | None) -> Tensor:
    # Contiguous whatever the layout of x: one seed then gives one noise.
    return gaussian(x.shape, dtype=x.dtype, device=x.device, scale=scale, generator=generator)


def _check_settings(
    caller: str,
    radius: object,
    step_size: object,
    num_steps: object,
    gamma: object,
    project_every: object,
    noise_scale: object,
    solver: object,
    grid_points: object,
    method: object,
) -> None:
    if not isinstance(radius, Tensor) and not 0 < as_float(caller, "radius", radius) < math.inf:
        raise ValueError(f"{caller}: radius must be > 0 and finite, got {radius}")
    for name, value in (("step_size", step_size), ("noise_scale", noise_scale)):
        if not 0 <= as_float(caller, name, value) < math.inf:
            raise ValueError(f"{caller}: {name} must be >= 0 and finite, got {value}")
    if not as_float(caller, "gamma", gamma) >= 1:  # written so that NaN is refused
        raise ValueError(f"{caller}: gamma must be >= 1, got {gamma}")
    as_int(caller, "num_steps", num_steps, 0)
    as_int(caller, "project_every", project_every, 1)
    if solver not in _SOLVERS:
        raise ValueError(f"{caller}: solver must be one of {', '.join(_SOLVERS)}, got {solver!r}")
    as_int(caller, "grid_points", grid_points, 2)
    if method not in _METHODS:
        raise ValueError(f"{caller}: method must be one of {', '.join(_METHODS)}, got {method!r}")


def _check_input(
    caller: str, x: Tensor, radius: float | Tensor, generator: torch.Generator | None
) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"{caller}: x must be a floating-point tensor, got {describe(x)}")
    if x.dim() == 0:
        raise ValueError(f"{caller}: x must have a batch dimension, got a tensor of shape ()")
    if isinstance(radius, Tensor) and (
        radius.shape != x.shape[:1] or not radius.is_floating_point()
    ):
        raise ValueError(
            f"{caller}: a radius tensor must be floating point of shape ({x.shape[0]},), got "
            f"{radius.dtype} of shape {tuple(radius.shape)}"
        )
    if generator is not None and generator.device.type != x.device.type:
        raise ValueError(
            f"{caller}: generator must be on the device of x, {x.device}, got {generator.device}"
        )


def _check_sigma(caller: str, x: Tensor, sigma: Tensor) -> None:
    # Its values are not read, that would wait for the device: the projection makes a bad row NaN.
    if not isinstance(sigma, Tensor) or not sigma.is_floating_point():
        raise TypeError(f"{caller}: sigma must be a floating-point tensor, got {describe(sigma)}")
    if sigma.shape not in (x.shape[1:], x.shape):
        raise ValueError(
            f"{caller}: sigma must have shape {tuple(x.shape[1:])}, one for all rows, or "
            f"{tuple(x.shape)}, got {tuple(sigma.shape)}"
        )
    if sigma.dtype != x.dtype:
        raise TypeError(f"{caller}: sigma must have the dtype of x, {x.dtype}, got {sigma.dtype}")
    if sigma.device != x.device:
        raise ValueError(
            f"{caller}: sigma must be on the device of x, {x.device}, got {sigma.device}"
        )
