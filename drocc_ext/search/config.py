"""Settings of the adversarial search."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeAlias, TypedDict

import torch
from torch import Tensor
from typing_extensions import Unpack

from drocc_ext._checks import as_float, as_int, describe
from drocc_ext.ops.mahalanobis_shell import Solver

Method: TypeAlias = Literal["auto", "autograd", "compiled", "hidden"]
Noise: TypeAlias = Literal["isotropic", "rows", "mixed", "swaps", "blend"]

_SOLVERS = ("newton", "grid")
_METHODS = ("auto", "autograd", "compiled", "hidden")
_NOISES = ("isotropic", "rows", "mixed", "swaps", "blend")
_NEEDED = ("radius", "step_size", "num_steps")


class OtherSettings(TypedDict, total=False):
    """Settings of a search besides those of its way, for type checkers; see `SearchConfig`."""

    gamma: float
    project_every: int
    radius_range: tuple[float, float] | None
    noise: Noise
    noise_rows: Tensor | None
    noise_factor: Tensor | None
    noise_scale: float
    project_start: bool
    project_last: bool
    freeze: bool
    solver: Solver
    grid_points: int
    method: Method


class Settings(OtherSettings, total=False):
    """All settings of a search."""

    radius: float | Tensor
    step_size: float
    num_steps: int


@dataclass(frozen=True, eq=False)
class SearchConfig:
    """Settings of `adversarial_search`, checked once.

    Attributes:
        radius: Inner radius of the shell in units of the input, > 0 and finite; or a floating-point
            tensor `[B]`, one radius for each row of the batch that is searched.
        step_size: Length of one step in units of the input, >= 0 and finite (eta in Algorithm 1).
        num_steps: Number of ascent steps, >= 0 (m in Algorithm 1); 0 is DROCC-Rand.
        gamma: Outer radius divided by inner radius, >= 1; `math.inf` for no outer bound.
        project_every: Project after every this many steps, >= 1.
        radius_range: The inner radius of each row is drawn anew for each search, log-uniformly
            between these two multiples of `radius`, 0 < first <= second; None for `radius` itself,
            as in the paper.
        noise: Shape of the starting noise. "isotropic" is the paper's N(0, I); "rows" is N(0, C), C
            the covariance that `noise_factor` stands for; "mixed" has the first half of a batch
            start from "rows", the second from "isotropic". "swaps" goes from a row towards another
            one of `noise_rows` in some of its columns, see `search.noise.swaps`; "blend" has the
            first half of a batch start from "rows", the second from "swaps".
        noise_factor: F of `C = F^T F`, `[K, *]`, dtype and device of the rows, such as
            `search.noise.row_factor` makes of training rows. Needed for "rows", "mixed", "blend".
        noise_rows: Training rows `[N, *]` of the same kind. Needed for "swaps" and "blend".
        noise_scale: Standard deviation of the starting noise, >= 0 and finite (1 in the paper).
        project_start: Project the starting noise too; False is Algorithm 1 to the letter.
        project_last: Project after the last step, whatever its number. Without steps the start is
            always projected.
        freeze: Search in the `frozen` model: no batch statistics, no dropout. Around a single row
            that is so anyway where there are batch statistics. The modules of a plain function or
            lambda cannot be seen: it is searched in the mode that they are in.
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
    radius_range: tuple[float, float] | None = None
    noise: Noise = "isotropic"
    noise_factor: Tensor | None = field(default=None, repr=False)
    noise_rows: Tensor | None = field(default=None, repr=False)
    noise_scale: float = 1.0
    project_start: bool = True
    project_last: bool = True
    freeze: bool = True
    solver: Solver = "newton"
    grid_points: int = 64
    method: Method = "auto"

    def __post_init__(self) -> None:
        """Refuse settings of the wrong type or out of range."""
        caller, radius = "SearchConfig", self.radius
        # Python's own numbers are kept: a file of torch's that holds numpy's is not read back.
        if not isinstance(radius, Tensor):
            number = as_float(caller, "radius", radius)
            if not 0 < number < math.inf:
                raise ValueError(f"{caller}: radius must be > 0 and finite, got {radius}")
            object.__setattr__(self, "radius", number)
        for name in ("step_size", "noise_scale"):
            number = as_float(caller, name, value := getattr(self, name))
            if not 0 <= number < math.inf:
                raise ValueError(f"{caller}: {name} must be >= 0 and finite, got {value}")
            object.__setattr__(self, name, number)
        gamma = as_float(caller, "gamma", self.gamma)
        if not gamma >= 1:  # written so that NaN is refused
            raise ValueError(f"{caller}: gamma must be >= 1, got {self.gamma}")
        object.__setattr__(self, "gamma", gamma)
        for name, least in (("num_steps", 0), ("project_every", 1), ("grid_points", 2)):
            value = as_int(caller, name, getattr(self, name), least)
            object.__setattr__(self, name, value)  # numpy's small integers would overflow
        for name, known in (("solver", _SOLVERS), ("method", _METHODS), ("noise", _NOISES)):
            value = getattr(self, name)
            if value not in known:
                raise ValueError(
                    f"{caller}: {name} must be one of {', '.join(known)}, got {value!r}"
                )

        if self.radius_range is not None:
            if not isinstance(self.radius_range, tuple | list) or len(self.radius_range) != 2:
                raise TypeError(
                    f"{caller}: radius_range must be two numbers or None, got {self.radius_range!r}"
                )
            low, high = self.radius_range
            ends = (as_float(caller, "radius_range", low), as_float(caller, "radius_range", high))
            if not 0 < ends[0] <= ends[1] < math.inf:
                raise ValueError(
                    f"{caller}: radius_range must be two finite numbers, 0 < first <= second, got "
                    f"{self.radius_range}"
                )
            object.__setattr__(self, "radius_range", ends)
        for name, kinds, shape in (
            ("noise_factor", ("rows", "mixed", "blend"), "[K, *]"),
            ("noise_rows", ("swaps", "blend"), "[N, *]"),
        ):
            value = getattr(self, name)
            if self.noise in kinds and not isinstance(value, Tensor):
                raise TypeError(
                    f"{caller}: noise {self.noise!r} needs {name}, a tensor {shape}, got "
                    f"{describe(value)}"
                )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take settings from a file, which are checked as any others."""
        self.__dict__.update(state)
        self.__post_init__()

    def __eq__(self, other: object) -> bool:
        """Compare all settings, a radius tensor by its values."""
        if not isinstance(other, SearchConfig):
            return NotImplemented
        return all(
            _same(getattr(self, field.name), getattr(other, field.name)) for field in fields(self)
        )

    def __hash__(self) -> int:
        """Hash what equal settings share."""
        return hash((self.step_size, self.num_steps, self.gamma, self.method))

    def of_rows(self, rows: Tensor | slice) -> SearchConfig:
        """Select the radii of some rows, where each row has its own.

        Args:
            rows: Mask `[B]` or slice.

        Returns:
            The settings for these rows.
        """
        if not isinstance(self.radius, Tensor):
            return self
        return replace(self, radius=self.radius[rows])

    def with_drawn_radii(self, x: Tensor, generator: torch.Generator | None) -> SearchConfig:
        """Draw the radii of a batch, where they are drawn at all.

        Args:
            x: The rows `[B, *]`.
            generator: Source of the radii, on the device of x.

        Returns:
            Settings with a radius for each row and no `radius_range`.
        """
        if self.radius_range is None:
            return self
        low, high = map(math.log, self.radius_range)
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        drawn = torch.empty(x.shape[:1], dtype=wide, device=x.device)
        drawn.uniform_(low, high, generator=generator) if low < high else drawn.fill_(low)
        return replace(self, radius=drawn.exp_() * self.radius, radius_range=None)

    @classmethod
    def in_radii(cls, *args: Any, **settings: Any) -> SearchConfig:
        """Do what `from_relative_step` does, under its former name, for one release."""
        return cls.from_relative_step(*args, **settings)

    @classmethod
    def from_relative_step(
        cls,
        radius: float,
        *,
        step_size: float = 0.1,
        num_steps: int = 5,
        **settings: Unpack[OtherSettings],
    ) -> SearchConfig:
        """Make a configuration with the step size in units of the radius; the default preset.

        What a search finds depends on the way it goes, `num_steps * step_size`, much more than on
        the number of steps: 5 steps of 0.1 radii take a tenth of the forwards of 50 steps of 0.01
        radii, for the same AUC on eight of nine data sets; the other, MNIST, wants 15 steps
        (`benchmarks/FEWER_STEPS.md`).

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


# A checkpoint that holds one, such as the hyperparameters of a LightningModule, is then loaded with
# `weights_only=True`.
torch.serialization.add_safe_globals([SearchConfig])


def as_config(
    caller: str, config: SearchConfig | None, settings: Mapping[str, Any]
) -> SearchConfig:
    """Make the settings of a search from a configuration, single settings, or both.

    Args:
        caller: Name to begin an error with.
        config: The configuration; None where all settings are given singly.
        settings: Fields of `SearchConfig`; they take the place of those of config.

    Returns:
        The settings.

    Raises:
        TypeError: If a setting has the wrong type, is missing or does not exist.
        ValueError: If a setting is out of range.
    """
    if config is not None and not isinstance(config, SearchConfig):
        raise TypeError(f"{caller}: config must be a SearchConfig, got {describe(config)}")
    known = [field.name for field in fields(SearchConfig)]
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise TypeError(
            f"{caller}: there is no setting {unknown[0]!r}; there are {', '.join(known)}"
        )
    missing = [name for name in _NEEDED if config is None and name not in settings]
    if missing:
        raise TypeError(f"{caller}: {', '.join(missing)} must be given, or a SearchConfig")
    if config is not None and not settings:
        return config
    try:
        return SearchConfig(**settings) if config is None else replace(config, **settings)
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("SearchConfig", caller, 1)) from None


def _same(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.device == other.device and one.dtype == other.dtype and torch.equal(one, other)
    return not (isinstance(one, Tensor) or isinstance(other, Tensor)) and one == other
