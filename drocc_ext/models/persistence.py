"""Models on disk without pickle: safetensors weights and a JSON description."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from drocc_ext.models.modules import unwrap
from drocc_ext.models.networks import NETWORKS

CONFIG_NAME = "config.json"
FORMAT = "drocc_ext.model"
FORMAT_VERSION = 1


def atomic_write(path: str | os.PathLike[str], writer: Callable[[BinaryIO], object]) -> None:
    """Write a file so that a reader, or a crash, meets the old content or the new, never a part.

    Args:
        path: File to write; its directory must exist.
        writer: Called with a binary file, a temporary one beside path that replaces it afterwards.

    Raises:
        OSError: If the file cannot be written. Like every error of writer, this leaves path as it
            was and no temporary file.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            writer(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def save_model(
    directory: str | os.PathLike[str], model: nn.Module, config: dict[str, Any] | None = None
) -> None:
    """Save a model's weights and description, replacing what an earlier call saved there.

    The directory gets a file of weights named by its content, then `config.json`, which names it:
    a save that is interrupted leaves the former model readable.

    Args:
        directory: Where to save; made where missing.
        model: Module with tensors only in its state. One of `models.networks` can be loaded
            without its class in hand; a `DistributedDataParallel` or compiled model is saved
            without its wrapper.
        config: Values of your own to keep with it, as JSON can hold them (tuples become lists).

    Raises:
        TypeError: If config is not a dict of JSON values, or the model's state holds other things
            than dense tensors.
        OSError: If the directory cannot be written.
    """
    if config is not None and not isinstance(config, dict):
        raise TypeError(f"save_model: config must be a dict, got {type(config).__name__}")
    module = _plain_module(model)
    name = type(module).__name__
    network = None
    if NETWORKS.get(name) is type(module):
        network = {"name": name, "config": module.config}
    weights = safetensors.torch.save(_state_tensors(module))
    digest = hashlib.sha256(weights).hexdigest()
    weights_name = f"weights-{digest[:16]}.safetensors"
    description = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "network": network,
        "weights": weights_name,
        "sha256": digest,
        "config": {} if config is None else config,
    }
    try:
        text = json.dumps(description, indent=2) + "\n"
    except (TypeError, ValueError) as error:
        raise TypeError(f"save_model: config must hold JSON values only: {error}") from error
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    atomic_write(directory / weights_name, lambda file: file.write(weights))
    atomic_write(directory / CONFIG_NAME, lambda file: file.write(text.encode()))
    for old in directory.glob(f"weights-{'[0-9a-f]' * 16}.safetensors"):
        if old.name != weights_name:
            old.unlink(missing_ok=True)


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
    directory = Path(directory)
    description = _read_description(directory)
    state = _read_weights(directory, description)
    if model is None:
        loaded = _build_network(directory, description)
        check_state_fits("load_model", loaded, state)
        loaded.load_state_dict(state, assign=True)  # keeps the saved types
    else:
        loaded = model
        module = _plain_module(model)
        check_state_fits("load_model", module, state)
        module.load_state_dict(state)
    return loaded.to(device).eval(), description["config"]


def check_state_fits(caller: str, model: nn.Module, state: Mapping[str, Any]) -> None:
    """Refuse a state dict whose names or shapes are not the model's, before any is copied.

    Args:
        caller: Name to begin an error with.
        model: The module it is meant for.
        state: The state dict.

    Raises:
        ValueError: If it does not fit.
    """
    own = model.state_dict()
    problems = [f"{name} is missing" for name in own if name not in state]
    problems += [f"{name} is unknown" for name in state if name not in own]
    problems += [
        f"{name} has shape {tuple(value.shape)}, not {tuple(own[name].shape)}"
        for name, value in state.items()
        if isinstance(value, Tensor)
        and isinstance(own.get(name), Tensor)
        and value.shape != own[name].shape
    ]
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(
            f"{caller}: the weights do not fit {type(model).__name__}: "
            f"{', '.join(problems[:3])}{more}"
        )


def _plain_module(model: nn.Module) -> nn.Module:
    while True:
        inner: nn.Module = unwrap(getattr(model, "_orig_mod", model))  # _orig_mod: torch.compile
        if inner is model:
            return model
        model = inner


def _state_tensors(module: nn.Module) -> dict[str, Tensor]:
    tensors = {}
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor) or value.layout is not torch.strided:
            raise TypeError(
                f"save_model: the model's state must hold dense tensors only, got "
                f"{type(value).__name__} for {name}"
            )
        # Copies, because safetensors refuses tied weights and views.
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
    return tensors


def _read_description(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG_NAME
    if not path.is_file():
        raise FileNotFoundError(f"load_model: {path} does not exist")
    try:
        description = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"load_model: {path} is not valid JSON: {error}") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ValueError(f"load_model: {path} does not describe a model of {FORMAT}")
    if description.get("version") != FORMAT_VERSION:
        raise ValueError(
            f"load_model: {path} must be of format version {FORMAT_VERSION}, got "
            f"{description.get('version')!r}"
        )
    network = description.get("network")
    well_formed = (
        isinstance(description.get("config"), dict)
        and isinstance(description.get("weights"), str)
        and isinstance(description.get("sha256"), str)
        and Path(description["weights"]).name == description["weights"]  # stays in the directory
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
    return description


def _read_weights(directory: Path, description: dict[str, Any]) -> dict[str, Tensor]:
    path = directory / description["weights"]
    if not path.is_file():
        raise FileNotFoundError(f"load_model: {path} does not exist")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != description["sha256"]:
        raise ValueError(f"load_model: {path} is damaged, its checksum is not the recorded one")
    try:
        return safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError) as error:
        raise ValueError(f"load_model: {path} is not a safetensors file: {error}") from error


def _build_network(directory: Path, description: dict[str, Any]) -> nn.Module:
    path = directory / CONFIG_NAME
    network = description["network"]
    if network is None:
        raise ValueError(f"load_model: {path} names no network of drocc_ext.networks, pass model")
    if network["name"] not in NETWORKS:
        raise ValueError(
            f"load_model: {path} names the unknown network {network['name']!r}, known are "
            f"{', '.join(sorted(NETWORKS))}"
        )
    try:
        return NETWORKS[network["name"]](**network["config"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"load_model: {path} describes no valid network: {error}") from error


def _sync_directory(directory: Path) -> None:
    # Makes the rename durable. The file is complete by now, so a system that cannot do this is no
    # reason to fail (Windows opens no directories, some network file systems do not sync them).
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
