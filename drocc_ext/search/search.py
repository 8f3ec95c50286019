"""The adversarial search of Algorithm 1: in a shell around each row, the point most normal."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from typing_extensions import Unpack

from drocc_ext._checks import AS_ONE_BATCH, check_rows, describe
from drocc_ext.models.modes import frozen
from drocc_ext.models.modules import bare, runs_by_itself, unwrap, uses_batch_statistics
from drocc_ext.ops import (
    l2_shell_step_,
    mahalanobis_shell_step_,
    normalized_ascent_,
    project_l2_shell_,
    project_mahalanobis_shell_,
)
from drocc_ext.search.config import SearchConfig, Settings, as_config
from drocc_ext.search.folding import folded
from drocc_ext.search.gradients import (
    compiled_gradient,
    input_gradient,
    search_by_operator,
)
from drocc_ext.search.noise import gaussian, swaps
from drocc_ext.search.recurrent import input_gradients_alone

_LARGEST = torch.finfo(torch.float32).max


def adversarial_search(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    config: SearchConfig | None = None,
    *,
    sigma: Tensor | None = None,
    generator: torch.Generator | None = None,
    **settings: Unpack[Settings],
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
    at every step, LSTM layers on the CPU by an operator that leaves out the gradients of weights.
    "hidden" does not call the model: all steps of a multilayer perceptron with one to four hidden
    layers and (leaky) ReLUs are one operator; an l2 search of another `nn.Sequential` that begins
    with a linear layer of H units runs among these units. In float32 the results agree to about
    1e-6, except for rows in which rounding switches a unit; where
    `torch.set_float32_matmul_precision` allows shorter products, to about 3e-4, shell included.
    "compiled" differentiates with `torch.compile`, on a CUDA device with replay of CUDA graphs (not
    yet run on one), which takes up to minutes at the first call and pays for long trainings; the
    model must not change between calls except for its weights. "auto" is "hidden" where that is
    known to be faster (`search.mlp.search.pays` has the rule), else "autograd", with each BatchNorm
    in eval mode that directly follows a convolution in an `nn.Sequential` folded into it.

    Peak memory does not depend on `num_steps`: with "autograd" it is that of one forward and
    backward of the model and two tensors of the size of x; "hidden" holds a few tensors `[B, H]`
    and one `[H, H]` instead of the activations. Nothing is read back to the host (except by
    "hidden" on networks that no operator serves), and parameters get no gradients.
    Works under `torch.no_grad()`, `torch.inference_mode()` and autocast. Of a model wrapped in
    `DistributedDataParallel` or compiled by `torch.compile` the inner module is searched;
    `torch.compile` leaves the search itself alone, and refuses it with `fullgraph=True`.

    Args:
        model: Maps `[B, *]` to one logit per row, `[B]` or `[B, 1]`, higher = more normal. Usually
            an `nn.Module`, which is searched in the `frozen` state; a plain function is called in
            the mode that its modules are in. It must not change its input in place.
        x: Rows to search around, `[B, *]`, floating point.
        config: Settings of the search. Without it `settings` must have radius, step_size and
            num_steps.
        generator: Source of the noise, on the device of x, of one thread at a time; None is that
            device's global one.
        sigma: Weights of the Mahalanobis metric, >= 0, `[*]` for all rows or `[B, *]`, dtype and
            device of x, such as `ops.influence` gives. None: the l2 shell.
        settings: Single fields of `SearchConfig`, which take the place of those of config.

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
    return _search(model, x, config, sigma, generator, settings)


@partial(runs_by_itself, name="adversarial_search")
def _search(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    config: SearchConfig | None,
    sigma: Tensor | None,
    generator: torch.Generator | None,
    settings: Settings,
) -> Tensor:
    caller = "adversarial_search"
    config = as_config(caller, config, settings)
    _check_input(caller, x, config.radius, generator)
    x = bare(x)
    if sigma is not None:
        _check_sigma(caller, x, sigma)
    if x.shape[0] == 0:
        return torch.empty_like(x)
    module = unwrap(model)
    # The statistics of one row would be its values.
    single = x.shape[0] == 1 and uses_batch_statistics(module)
    freezing = frozen(module) if config.freeze or single else nullcontext()
    # Leaving inference mode turns gradients on, so no_grad has to come after it.
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        _no_tangents(),
        freezing,
    ):
        config = config.with_drawn_radii(x, generator)
        try:
            h = _noise(caller, x, config, generator)
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
            raise TypeError(
                f"{caller}: it must be called outside of {AS_ONE_BATCH} (jacfwd and hessian take "
                "randomness='same')"
            ) from error
        if config.project_start or config.num_steps == 0:
            _project(h, sigma, config)
        if config.num_steps == 0:
            return torch.add(x, h, out=torch.empty_like(x))
        if config.method in ("auto", "hidden"):
            found = search_by_operator(caller, module, x, h, sigma, config)
            if found is not None:
                return found
            if config.method == "hidden":
                raise ValueError(
                    f"{caller}: method 'hidden' needs rows [B, D] and a multilayer perceptron with "
                    "ReLUs or, in the l2 metric, an nn.Sequential that begins with nn.Linear, "
                    f"without hooks, got {type(module).__name__} and x of shape {tuple(x.shape)}"
                )
        called = module
        if config.method == "auto" and isinstance(module, nn.Module):
            called = folded(module)
        gradient: Callable[[Tensor], Tensor] = partial(input_gradient, caller, called)
        if config.method == "compiled":
            if not isinstance(module, nn.Module):
                raise TypeError(
                    f"{caller}: method 'compiled' needs a module, got {type(module).__name__}"
                )
            gradient = compiled_gradient(module, graphs=x.is_cuda)
        with input_gradients_alone(called):
            return _walk(gradient, x, h, sigma, config)


def _no_tangents() -> AbstractContextManager[object]:
    """Keep derivatives along a direction (`torch.func.jvp`) out of the points, as gradients are."""
    if forward_ad._current_level < 0:
        return nullcontext()
    return forward_ad._set_fwd_grad_enabled(False)


def _walk(
    gradient: Callable[[Tensor], Tensor],
    x: Tensor,
    h: Tensor,
    sigma: Tensor | None,
    config: SearchConfig,
) -> Tensor:
    """Take all steps from h, one gradient each; return `x + h`."""
    x_adv = torch.empty_like(x, requires_grad=True)
    for step in range(1, config.num_steps + 1):
        torch.add(x, h, out=x_adv)
        grad = gradient(x_adv)
        last = step == config.num_steps and config.project_last
        if step % config.project_every == 0 or last:
            _step(h, grad, sigma, config)
        else:
            normalized_ascent_(h, grad, config.step_size)
        del grad  # or it would live through the next forward
    return torch.add(x, h, out=x_adv).detach()


def _step(h: Tensor, grad: Tensor, sigma: Tensor | None, config: SearchConfig) -> None:
    step_size, radius, gamma = config.step_size, config.radius, config.gamma
    if sigma is None:
        l2_shell_step_(h, grad, step_size, radius, gamma)
    else:
        solver, points = config.solver, config.grid_points
        mahalanobis_shell_step_(h, grad, sigma, step_size, radius, gamma, solver, points)


def _project(h: Tensor, sigma: Tensor | None, config: SearchConfig) -> None:
    if sigma is None:
        project_l2_shell_(h, config.radius, config.gamma)
    else:
        solver, points = config.solver, config.grid_points
        project_mahalanobis_shell_(h, sigma, config.radius, config.gamma, solver, points)


def draw_start(
    caller: str, x: Tensor, config: SearchConfig, generator: torch.Generator | None
) -> Tensor:
    """Draw where an l2 search starts, as `adversarial_search` does.

    Args:
        caller: Name to begin an error with.
        x: Rows `[B, *]`.
        config: Settings of the search, with drawn radii.
        generator: Source of the noise.

    Returns:
        The start h, shape of x, contiguous.

    Raises:
        ValueError: If radius or generator does not fit x.
    """
    _check_input(caller, x, config.radius, generator)
    h = _noise(caller, x, config, generator)
    if config.project_start:
        project_l2_shell_(h, config.radius, config.gamma)
    return h


def _noise(
    caller: str, x: Tensor, config: SearchConfig, generator: torch.Generator | None
) -> Tensor:
    # Contiguous whatever the layout of x: one seed then gives one noise.
    draw = partial(
        gaussian,
        dtype=x.dtype,
        device=x.device,
        scale=config.noise_scale,
        generator=generator,
    )
    shaped = {"rows": len(x), "mixed": len(x) // 2, "blend": len(x) // 2}.get(config.noise, 0)
    swapped = {"swaps": len(x), "blend": len(x) - shaped}.get(config.noise, 0)
    if len(x) == 0:
        return draw(x.shape)
    parts = []
    if shaped > 0:
        factor = config.noise_factor
        assert factor is not None  # SearchConfig has seen to it
        _check_kind(caller, "noise_factor", "K", factor, x)
        weights = draw((shaped, len(factor)))
        parts.append((weights @ factor.flatten(1)).view(shaped, *x.shape[1:]))
    if shaped + swapped < len(x):
        parts.append(draw((len(x) - shaped - swapped, *x.shape[1:])))
    if swapped > 0:
        rows = config.noise_rows
        assert rows is not None
        _check_kind(caller, "noise_rows", "N", rows, x)
        scale = config.noise_scale
        parts.append(swaps(x[len(x) - swapped :], rows, scale=scale, generator=generator))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _check_kind(caller: str, name: str, count: str, value: Tensor, x: Tensor) -> None:
    """Refuse what does not go with the rows x."""
    if value.shape[1:] != x.shape[1:] or value.dtype != x.dtype or value.device != x.device:
        raise ValueError(
            f"{caller}: {name} must have shape [{count}, *] with the rows' {tuple(x.shape[1:])}, "
            f"dtype {x.dtype} and device {x.device}, got {value.dtype} of shape "
            f"{tuple(value.shape)} on {value.device}"
        )
    if len(value) == 0:
        raise ValueError(f"{caller}: {name} must have at least one row, got none")


def _check_input(
    caller: str, x: Tensor, radius: float | Tensor, generator: torch.Generator | None
) -> None:
    check_rows(caller, x)
    if x.dim() == 1:
        raise ValueError(
            f"{caller}: x must be rows with features, shape [B, *], got {tuple(x.shape)}"
        )
    if not isinstance(radius, Tensor) and x.dtype != torch.float64 and radius > _LARGEST:
        raise ValueError(f"{caller}: radius must fit float32 for rows {x.dtype}, got {radius:g}")
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
