"""`SearchConfig` as the argument of a search, compared and hashed; names of the release before."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch

from drocc_ext import DROCCLoss, SearchConfig, adversarial_search, networks

SETTINGS = {"radius": 1.2, "step_size": 0.1, "num_steps": 3}


def found(seed: int, *arguments: object, **settings: object) -> torch.Tensor:
    torch.manual_seed(seed)
    model, x = networks.MLP(4, 7), torch.randn(6, 4)
    noise = torch.Generator().manual_seed(seed)
    return adversarial_search(model, x, *arguments, generator=noise, **settings)  # type: ignore[arg-type]


def test_config_settings_and_both_are_one_search(seed: int) -> None:
    config = SearchConfig(**SETTINGS, gamma=1.5)
    expected = found(seed, **SETTINGS, gamma=1.5)
    assert torch.equal(found(seed, config), expected)
    assert torch.equal(found(seed, SearchConfig(**SETTINGS, gamma=3.0), gamma=1.5), expected)
    assert not torch.equal(found(seed, config, radius=2.0), expected)


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ((), {"radius": 1.0}, "adversarial_search: step_size, num_steps must be given"),
        ((), {**SETTINGS, "stepsize": 1}, "adversarial_search: there is no setting 'stepsize'"),
        ((1.2,), {}, "adversarial_search: config must be a SearchConfig, got float"),
        ((SearchConfig(**SETTINGS),), {"num_steps": 1.5}, "adversarial_search: num_steps must be"),
    ],
)
def test_what_is_not_a_setting(
    arguments: tuple[object, ...], settings: dict[str, object], message: str, seed: int
) -> None:
    with pytest.raises(TypeError, match=f"^{message}"):
        found(seed, *arguments, **settings)


def test_numbers_of_numpy_can_be_read_back_as_weights_are() -> None:
    given = {"radius": np.float64(1.2), "step_size": np.float32(0.5), "num_steps": np.int64(3)}
    ends = (np.float64(0.5), np.float64(2))
    config = SearchConfig(
        **given, gamma=np.float64(2), noise_scale=np.float32(1), radius_range=ends
    )
    torch.save(config, file := io.BytesIO())
    file.seek(0)
    with torch.serialization.safe_globals([SearchConfig]):
        assert torch.load(file, weights_only=True) == config
    plain = {key: float(value) for key, value in given.items()} | {"num_steps": 3}
    assert config == SearchConfig(**plain, radius_range=[0.5, 2])  # type: ignore[arg-type]


def test_equal_settings_are_equal(seed: int) -> None:
    torch.manual_seed(seed)
    radius = torch.rand(5) + 0.5
    make: Callable[..., SearchConfig] = lambda **other: SearchConfig(**{**SETTINGS, **other})  # noqa: E731
    assert make() == make() and hash(make()) == hash(make())
    assert make() != make(gamma=3.0) and make() != 3
    one, same = make(radius=radius), make(radius=radius.clone())
    assert one == same and hash(one) == hash(same)
    assert one != make(radius=radius + 1) and one != make(radius=radius.double()) and one != make()
    assert {one: 1}[same] == 1
    mask = torch.tensor([True, False, True, False, False])
    assert torch.equal(torch.as_tensor(one.of_rows(mask).radius), radius[mask])
    assert make().of_rows(mask) is not None and make().of_rows(mask) == make()


def test_without_the_last_projection(seed: int) -> None:
    settings = {**SETTINGS, "num_steps": 4, "project_every": 3, "gamma": 1.0, "step_size": 0.9}
    for method in ("auto", "autograd"):
        torch.manual_seed(seed)
        model, x = networks.MLP(4, 7), torch.randn(6, 4)
        start = torch.Generator().manual_seed(seed)
        end = adversarial_search(
            model, x, generator=start, project_last=False, method=method, **settings
        )
        lengths = (end - x).norm(dim=1)
        assert ((lengths - 1.2).abs() > 1e-3).any()
        start = torch.Generator().manual_seed(seed)
        end = adversarial_search(model, x, generator=start, method=method, **settings)
        torch.testing.assert_close((end - x).norm(dim=1), torch.full((6,), 1.2))


def test_a_loop_without_epochs_is_told_once(seed: int) -> None:
    torch.manual_seed(seed)
    model, x = networks.MLP(4, 7), torch.randn(6, 4)
    loss = DROCCLoss(SearchConfig(**SETTINGS), metric="mahalanobis")
    with pytest.warns(RuntimeWarning, match="call start_epoch"):
        loss(model, x)
    state = {name: value.clone() for name, value in loss.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(model, x)
        loss.reset()
        loss.start_epoch()
        loss(model, x)
    former = {"_influence_sum": "tracker.influence_sum", "_influence_rows": "tracker.row_count"}
    other = DROCCLoss(SearchConfig(**SETTINGS), metric="mahalanobis")
    other.load_state_dict({old: state[new] for old, new in former.items()})
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())


MOVED = """
import sys, warnings
import drocc_ext
for name in ("losses", "trainer", "networks", "persistence", "callbacks", "reference.l2_shell"):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        module = __import__("drocc_ext." + name, fromlist=["x"])
        first = {"losses": "DROCCLoss", "trainer": "Trainer", "networks": "MLP",
                 "persistence": "save_model", "callbacks": "Callback",
                 "reference.l2_shell": "project_l2_shell"}[name]
        assert getattr(module, first) is not None
        assert any("has moved to" in str(w.message) for w in seen), name
try:
    import drocc_ext.nothing
except ModuleNotFoundError:
    print("done")
"""

LAZY = """
import sys
from drocc_ext import ops
import torch
torch.ops.drocc.l2_shell_step
heavy = [name for name in ("sklearn", "scipy", "pandas") if name in sys.modules]
assert not heavy, heavy
import drocc_ext
assert drocc_ext.Trainer.__name__ == "Trainer" and "DROCC" in dir(drocc_ext)
print("done")
"""

HELP = """
import sys
sys.argv = ["drocc-ext", "--version"]
import drocc_ext
assert "torch" not in sys.modules
print("done")
"""


@pytest.mark.parametrize("code", [MOVED, LAZY, HELP])
def test_what_an_import_brings(code: str) -> None:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == "done\n", run.stderr
