"""Which forwards can be understood once and for all: those that decide nothing.

A symbolic trace shows what a forward did once. It is what the forward always does only if nothing
that it reads can change unseen. So the compiled code of a forward is read first: straight code, or
a loop over submodules, that touches its argument, its submodules, plain numbers of its instance, a
few functions of torch and constants, and nothing else.
"""

from __future__ import annotations

import builtins
import dis
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any, Generic

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["decides_nothing", "is_plain_value", "settings_of"]

# Operations of the interpreter that neither branch nor store outside the frame; of all versions.
_HARMLESS = frozenset(
    """
    BINARY_ADD BINARY_MULTIPLY BINARY_OP BINARY_SLICE BINARY_SUBSCR BINARY_SUBTRACT BUILD_LIST
    BUILD_SLICE BUILD_TUPLE CACHE CALL CALL_FUNCTION CALL_FUNCTION_KW CALL_KW CALL_METHOD COPY
    DUP_TOP END_FOR EXTENDED_ARG FOR_ITER GET_ITER INPLACE_ADD JUMP_ABSOLUTE JUMP_BACKWARD
    KW_NAMES LOAD_CONST LOAD_FAST LOAD_FAST_BORROW LOAD_FAST_BORROW_LOAD_FAST_BORROW
    LOAD_FAST_LOAD_FAST LOAD_SMALL_INT NOP NOT_TAKEN POP_ITER POP_TOP PRECALL PUSH_NULL RESUME
    RETURN_CONST RETURN_VALUE ROT_THREE ROT_TWO STORE_FAST STORE_FAST_LOAD_FAST
    STORE_FAST_STORE_FAST SWAP UNARY_NEGATIVE UNPACK_SEQUENCE
    """.split()  # noqa: SIM905
)
_NAMING = frozenset({"LOAD_ATTR", "LOAD_METHOD", "LOAD_GLOBAL"})

_MODULES = (torch, nn, F)
_FUNCTIONS = (
    *(F.relu, F.relu_, F.leaky_relu, F.leaky_relu_, torch.relu, torch.relu_),
    *(torch.flatten, torch.squeeze, len, range, enumerate, zip, reversed),
)
# The functions by the names under which a forward finds them, as they were at import.
_GENUINE = {
    (module, name): getattr(module, name)
    for module, names in (
        (F, ("relu", "relu_", "leaky_relu", "leaky_relu_")),
        (torch, ("relu", "relu_", "flatten", "squeeze")),
    )
    for name in names
}
# Attributes of tensors and of torch's modules. A submodule of one of these names hides nothing:
# what is looked up on a tensor is not looked up on a module.
_ATTRIBUTES = frozenset(
    """
    contiguous flatten functional leaky_relu leaky_relu_ nn relu relu_ reshape shape size
    squeeze view
    """.split()  # noqa: SIM905
)


# What a class may define beside its forward: nothing of it is looked at when a module is called.
# Others, such as `__iter__`, decide what a container hands its input through.
_SILENT = frozenset(
    """
    __abstractmethods__ __annotate__ __annotate_func__ __annotations__ __annotations_cache__
    __class_getitem__ __conditional_annotations__ __constants__ __copy__ __dataclass_fields__
    __dataclass_params__ __deepcopy__ __del__
    __dict__ __dir__ __doc__ __eq__ __firstlineno__ __format__ __getnewargs__ __getnewargs_ex__
    __getstate__ __hash__ __init__ __init_subclass__ __jit_unused_properties__ __jit_ignored__
    __match_args__ __module__ __ne__ __new__ __orig_bases__ __parameters__ __post_init__
    __qualname__ __reduce__ __reduce_ex__ __replace__ __repr__ __setstate__ __slots__ __sizeof__
    __static_attributes__ __str__ __subclasshook__ __type_params__ __version__ __weakref__
    """.split()  # noqa: SIM905
)
_PLAIN = (bool, int, float, str)
_ABSENT = object()


@dataclass(frozen=True)
class _Names:
    """What compiled code refers to by name."""

    attributes: frozenset[str]
    globals: frozenset[str]


_known: dict[CodeType, _Names | None] = {}


def decides_nothing(module: nn.Module) -> bool:
    """Say whether a module's forward does the same for every input, as far as its code shows.

    Args:
        module: A module of any class, whose submodules are looked at by the caller.

    Returns:
        Whether the forward of its class takes one argument and does nothing with it but hand it
        through submodules, ReLUs, and reshapes, and whether nothing stands between a call and that
        forward.
    """
    cls = type(module)
    forward = cls.forward
    if (
        not isinstance(forward, FunctionType)
        or cls.__call__ is not nn.Module.__call__
        or cls._call_impl is not nn.Module._call_impl
        or cls.__getattr__ is not nn.Module.__getattr__
        or cls.__getattribute__ is not object.__getattribute__
        or forward.__closure__
        or forward.__defaults__
        or forward.__kwdefaults__
        or not _is_silent(cls)
    ):
        return False
    code = forward.__code__
    if code not in _known:
        if len(_known) > 1000:  # classes made in a loop
            _known.clear()
        _known[code] = _names_of(code)
    names = _known[code]
    if names is None or not _is_genuine():
        return False
    if not all(_is_allowed(forward.__globals__, name) for name in names.globals):
        return False
    if not all(_is_understood(module, name) for name in names.attributes):
        return False
    # It may call such names on its submodules, too.
    below = list(module.modules())[1:]
    kinds = {type(part) for part in below}
    return not any(hasattr(kind, name) for kind in kinds for name in names.attributes) and all(
        type(vars(part)[name]) in _PLAIN
        for part in below
        for name in names.attributes & vars(part).keys()
    )


def _is_silent(cls: type[nn.Module]) -> bool:
    """Say whether a class leaves to torch what is looked up when a module is called or iterated."""
    return not any(
        name.startswith("__") and name.endswith("__")
        for base in cls.__mro__
        if not base.__module__.startswith("torch.nn.") and base not in (object, Generic)
        for name in vars(base).keys() - _SILENT
    )


def _is_understood(module: nn.Module, name: str) -> bool:
    """Say whether an attribute is a submodule, a plain value of the instance, or a tensor's."""
    if hasattr(type(module), name):  # found on the class, before a submodule
        return False
    value = vars(module).get(name, _ABSENT)
    if value is not _ABSENT:  # `settings_of` tells its values apart
        return type(value) in _PLAIN and name not in module._modules
    return name in module._modules or name in _ATTRIBUTES


def is_plain_value(value: object) -> bool:
    """Say whether a value is what it looks like: equal ones have one meaning, for good."""
    return type(value) in _PLAIN or isinstance(value, np.generic)


def settings_of(module: nn.Module) -> tuple[object, ...]:
    """List the plain values of an instance, which a forward may read.

    Args:
        module: Any module.

    Returns:
        Names and values.
    """
    return tuple(
        (k, v)
        for k, v in vars(module).items()
        if type(v) in _PLAIN or isinstance(v, np.generic)  # `is_plain_value`, without a call
    )


def _is_genuine() -> bool:
    """Say whether nobody has put another function in the place of one of torch's."""
    return all(getattr(module, name) is known for (module, name), known in _GENUINE.items())


def _names_of(code: CodeType) -> _Names | None:
    if code.co_argcount != 2 or code.co_kwonlyargcount or code.co_flags & _VARIADIC:
        return None
    attributes: set[str] = set()
    globals_: set[str] = set()
    for instruction in dis.get_instructions(code):
        if instruction.opname in _NAMING:
            found = globals_ if instruction.opname == "LOAD_GLOBAL" else attributes
            found.add(instruction.argval)
        elif instruction.opname not in _HARMLESS:
            return None
    return _Names(frozenset(attributes), frozenset(globals_))


_VARIADIC = 0x04 | 0x08 | 0x20 | 0x80 | 0x200  # *args, **kwargs, generators and coroutines


def _is_allowed(scope: dict[str, Any], name: str) -> bool:
    value = scope.get(name, getattr(builtins, name, None))
    return any(value is known for known in (*_MODULES, *_FUNCTIONS))
