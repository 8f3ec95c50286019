"""One fit, whole, for a method that reads it while another thread fits the estimator anew."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

Method = TypeVar("Method", bound=Callable[..., Any])
Estimator = TypeVar("Estimator")


def snapshot(estimator: Estimator) -> Estimator:
    """Copy an estimator's attributes as they are now, not what they refer to.

    A fit gives the estimator all its attributes at once, so that these belong together.

    Args:
        estimator: The estimator.

    Returns:
        Another of its class.
    """
    other: Estimator = object.__new__(type(estimator))
    other.__dict__ = estimator.__dict__.copy()
    return other


def give_back(estimator: Any, before: dict[str, Any], fitted: Any) -> None:
    """Give an estimator, at once, what a fit of a copy has set; what others set meanwhile stays.

    Args:
        estimator: The estimator.
        before: The copy's attributes before the fit.
        fitted: The copy.
    """
    after = fitted.__dict__
    changed = {k: v for k, v in after.items() if k not in before or before[k] is not v}
    attributes = estimator.__dict__.copy()
    for name in before.keys() - after.keys():
        attributes.pop(name, None)
    estimator.__dict__ = attributes | changed


def of_one_fit(method: Method) -> Method:
    """Let a method see one fit from its beginning to its end.

    Args:
        method: A method that changes nothing.

    Returns:
        The method.
    """

    @wraps(method)
    def reading(self: Any, *args: Any, **settings: Any) -> Any:
        return method(snapshot(self), *args, **settings)

    return cast(Method, reading)
