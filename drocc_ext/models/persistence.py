"""Models on disk without pickle: safetensors weights and a JSON description."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from drocc_ext import __version__
from drocc_ext._files import atomic_write, clear_temporaries, locked_directory
from drocc_ext.models.networks import NETWORKS
from drocc_ext.models.states import check_state_fits, plain_module

CONFIG_NAME = "config.json"
FORMAT = "drocc_ext.model"
FORMAT_VERSION = 2

_WEIGHTS_NAME = re.compile(r"weights-[0-9a-f-]{1,80}\.safetensors")
_OWN_WEIGHTS_NAME = re.compile(r"weights-[0-9a-f]{16}-[0-9a-f]{8}\.safetensors")
_READ_TRIES = 50
_GRACE_SECONDS = 3600.0
_LARGEST_SIZE = 2**31 - 1
_DTYPES = {
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.bool,
}


def save_model(
    directory: str | os.PathLike[str], model: nn.Module, config: dict[str, Any] | None = None
) -> None:
    """Save a model's weights and description, replacing what an earlier call saved there.

    The directory gets a file of weights under a new name, then `config.json`, which names it: a
    save that is interrupted leaves the former model readable, and of several at once one wins, all
    of it. The weights named before stay until the next save, for readers that have just read that
    name; older ones are removed, and nothing else is.

    Args:
        directory: Where to save; made where missing.
        model: Module with tensors only in its state. One of `models.networks` can be loaded
            without its class in hand; a `DistributedDataParallel` or compiled model is saved
            without its wrapper.
        config: Values of your own to keep with it, as JSON can hold them (tuples become lists).

    Raises:
        TypeError: If model is no module or config not a dict of JSON values, or the model's state
            holds other things than dense tensors, or parts of a sharded model.
        ValueError: If directory is empty or holds a `config.json` of something else, or if weights
            are lazy or on the meta device.
        OSError: If the directory cannot be written.
    """
    if not isinstance(directory, str | os.PathLike):
        raise TypeError(
            f"save_model: directory must be a path, got {type(directory).__name__}; the model "
            "comes second"
        )
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"save_model: model must be a module, got {type(model).__name__}; estimators have a "
            "method save(directory)"
        )
    if os.fspath(directory) == "":
        raise ValueError("save_model: directory must be named, got ''")
    if config is not None and not isinstance(config, dict):
        raise TypeError(f"save_model: config must be a dict, got {type(config).__name__}")
    module = plain_module(model)
    name = type(module).__name__
    network = None
    if NETWORKS.get(name) is type(module):
        network = {"name": name, "config": module.config}
    weights = safetensors.torch.save(_state_tensors(module))
    digest = hashlib.sha256(weights).hexdigest()
    version = f"{digest[:16]}-{secrets.token_hex(4)}"
    weights_name = f"weights-{version}.safetensors"
    description = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "library": f"drocc_ext {__version__}",
        "network": network,
        "weights": weights_name,
        "sha256": digest,
        "config": {} if config is None else config,
    }
    try:
        description["checksum"] = checksum(description)
        text = json.dumps(description, indent=2) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"save_model: config must hold JSON values only: {error}") from error
    folder = Path(directory)
    check_place("save_model", folder)
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    clear_temporaries(folder, f"weights-{'?' * len(version)}.safetensors")
    with locked_directory(folder) as held:
        former = _named_weights(folder)
        try:
            config_file = folder / CONFIG_NAME  # who reads it must be able to read the weights
            atomic_write(folder / weights_name, lambda file: file.write(weights), config_file)
            atomic_write(config_file, lambda file: file.write(text.encode()))
        except BaseException:
            _remove_unnamed(folder, weights_name, is_new=is_new)
            raise
        if former is not None:  # else what there is may be anybody's
            _remove_old_weights(folder, {weights_name, former}, 0.0 if held else _GRACE_SECONDS)


def check_place(caller: str, folder: Path) -> None:
    """Refuse a directory with a description of something else, which a save would replace.

    Args:
        caller: Name to begin an error with.
        folder: Where a model is to be saved.

    Raises:
        ValueError: If there is one, or one that cannot be read.
    """
    path = folder / CONFIG_NAME
    with suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
        content = path.read_bytes()
        if not content or json.loads(content)["format"] == FORMAT:
            return
    if path.exists():
        raise ValueError(
            f"{caller}: {path} must not be there or be of a saved model, got a file of another "
            "kind, which is not overwritten"
        )


def load_model(
    directory: str | os.PathLike[str],
    model: nn.Module | None = None,
    device: str | torch.device = "cpu",
) -> tuple[nn.Module, dict[str, Any]]:
    """Load what `save_model` saved. Runs no code from the files.

    Args:
        directory: Where it was saved.
        model: Module to load the weights into, converted to its own types; None builds the
            network named in the description, with the types saved.
        device: Where the model goes.

    Returns:
        The model in eval mode, and the config given to `save_model` ({} if none was).

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is damaged or of another format, if the network is not one of
            `models.networks` and no model is given, or if the weights do not fit the model.
            The given model is then unchanged.
    """
    folder = Path(directory)
    description, state = _read(folder)
    if model is None:
        loaded = _build_network(folder, description, state)
        loaded.load_state_dict(state, assign=True)  # keeps the saved types
    else:
        loaded = model
        module = plain_module(model)
        check_state_fits("load_model", module, state)
        module.load_state_dict(state)
    return loaded.to(device).eval(), description["config"]


def checksum(description: Mapping[str, Any]) -> str:
    """Compute the checksum of a description, over all its entries but the checksum itself.

    Args:
        description: JSON values.

    Returns:
        SHA-256, in hexadecimal digits.
    """
    rest = {name: value for name, value in description.items() if name != "checksum"}
    # As it will be read: tuples have become lists, keys strings.
    as_read = json.loads(json.dumps(rest))
    text = json.dumps(as_read, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _state_tensors(module: nn.Module) -> dict[str, Tensor]:
    tensors = {}
    for name, parameter in module.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise ValueError(f"save_model: the model's weights must be there, got lazy for {name}")
    for name, value in module.state_dict().items():
        if hasattr(value, "full_tensor"):
            raise TypeError(
                "save_model: the model's weights must be whole, got a part (DTensor) for "
                f"{name}; torch.distributed.checkpoint.state_dict.get_model_state_dict gathers "
                "them, for a model that is not sharded"
            )
        if not isinstance(value, Tensor) or value.layout is not torch.strided:
            raise TypeError(
                f"save_model: the model's state must hold dense tensors only, got "
                f"{type(value).__name__} for {name}"
            )
        if value.is_meta:
            raise ValueError(f"save_model: the model's weights must be there, got meta for {name}")
        # Copies, because safetensors refuses tied weights and views.
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
    return tensors


def _named_weights(folder: Path) -> str | None:
    """Name the weights that a directory's description names now, whatever else is in it."""
    with suppress(OSError, ValueError, RecursionError, AttributeError):
        name = json.loads((folder / CONFIG_NAME).read_bytes()).get("weights")
        return name if isinstance(name, str) else None
    return None


def _remove_unnamed(folder: Path, weights_name: str, *, is_new: bool) -> None:
    """Remove what a save that failed has made: weights without a description, a new directory."""
    if _named_weights(folder) != weights_name:
        with suppress(OSError):
            (folder / weights_name).unlink()
    if is_new:
        with suppress(OSError):  # it may hold more by now
            folder.rmdir()


def _remove_old_weights(folder: Path, keep: set[str | None], grace: float) -> None:
    """Remove weights that no description names any more.

    Where the directory is locked nobody else is between writing weights and naming them, so that
    no grace is needed. Elsewhere only what is older than any save takes is removed.
    """
    for path in folder.glob("weights-*.safetensors"):
        if path.name in keep or not _OWN_WEIGHTS_NAME.fullmatch(path.name):
            continue
        with suppress(OSError):
            if time.time() - path.stat().st_mtime >= grace:
                path.unlink()


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a description and its weights; again where a save came in between."""
    for _ in range(_READ_TRIES):
        description, text = _read_description(folder)
        try:
            return description, _read_weights(folder, description)
        except (OSError, ValueError):
            with suppress(OSError):
                if (folder / CONFIG_NAME).read_bytes() != text:
                    continue
            raise
    raise ValueError(
        f"load_model: {folder} was saved anew during each of {_READ_TRIES} tries to read it"
    )


def _read_description(folder: Path) -> tuple[dict[str, Any], bytes]:
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise FileNotFoundError(f"load_model: {path} does not exist")
    text = path.read_bytes()
    try:
        description = json.loads(text)
    except ValueError as error:
        raise ValueError(f"load_model: {path} is not valid JSON: {error}") from error
    except RecursionError:
        raise ValueError(f"load_model: {path} is not valid JSON: it is nested too deep") from None
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ValueError(f"load_model: {path} does not describe a model of {FORMAT}")
    version = description.get("version")
    if isinstance(version, bool) or version not in (1, FORMAT_VERSION):
        raise ValueError(
            f"load_model: {path} must be of format version {FORMAT_VERSION} or older, got "
            f"{version!r}"
        )
    network = description.get("network")
    well_formed = (
        isinstance(description.get("config"), dict)
        and isinstance(description.get("weights"), str)
        and isinstance(description.get("sha256"), str)
        and _WEIGHTS_NAME.fullmatch(description["weights"])  # stays in the directory
        and (
            network is None
            or (
                isinstance(network, dict)
                and isinstance(network.get("name"), str)
                and isinstance(network.get("config"), dict)
            )
        )
    )
    if not well_formed:
        raise ValueError(f"load_model: {path} lacks entries or has some of the wrong type")
    # The first version had no checksum of its own.
    if (version > 1 or "checksum" in description) and not _is_intact(description):
        raise ValueError(
            f"load_model: {path} is damaged or was edited, its checksum is not the recorded one"
        )
    return description, text


def _is_intact(description: dict[str, Any]) -> bool:
    try:
        return description.get("checksum") == checksum(description)
    except RecursionError:
        return False


def _read_weights(folder: Path, description: dict[str, Any]) -> dict[str, Tensor]:
    path = folder / description["weights"]
    if not path.is_file():
        raise FileNotFoundError(f"load_model: {path} does not exist")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != description["sha256"]:
        raise ValueError(f"load_model: {path} is damaged, its checksum is not the recorded one")
    try:
        return safetensors.torch.load(content)
    except Exception as error:  # foreign bytes fail in any way
        raise ValueError(f"load_model: {path} is not a safetensors file: {error}") from error


def _build_network(
    folder: Path, description: dict[str, Any], state: Mapping[str, Tensor]
) -> nn.Module:
    """Build the network described, without memory for its weights: the state brings that."""
    path = folder / CONFIG_NAME
    network = description.get("network")
    if network is None:
        raise ValueError(f"load_model: {path} names no network of drocc_ext.networks, pass model")
    if network["name"] not in NETWORKS:
        raise ValueError(
            f"load_model: {path} names the unknown network {network['name']!r}, known are "
            f"{', '.join(sorted(NETWORKS))}"
        )
    try:
        _check_sizes(network["config"], len(state))
        with torch.device("meta"):
            built = NETWORKS[network["name"]](**network["config"])
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"load_model: {path} describes no valid network: {reason}") from error
    check_state_fits("load_model", built, state)
    other = [str(value.dtype) for value in state.values() if value.dtype not in _DTYPES]
    if other:
        raise ValueError(f"load_model: {path} must have weights of a usual type, got {other[0]}")
    return built


def _check_sizes(config: dict[str, Any], tensors: int) -> None:
    """Refuse sizes of a network that none has, before a layer is made for each.

    Each member and layer has a tensor of its own in the file, of which there are so many.
    """
    members = config.get("members")
    if isinstance(members, int) and members > tensors:
        raise ValueError(f"members must be at most {tensors}, as there are tensors, got {members}")
    for name, value in config.items():
        values = value if isinstance(value, list) else [value]
        if len(values) > tensors:
            raise ValueError(f"{name} must hold at most {tensors} sizes, got {len(values)}")
        if any(isinstance(size, int) and size > _LARGEST_SIZE for size in values):
            raise ValueError(f"{name} must be at most {_LARGEST_SIZE}")
