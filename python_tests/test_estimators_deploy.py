"""`to_module()`: a fitted detector as one module, and what becomes of it elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import python
from sklearn.exceptions import NotFittedError
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from drocc_ext import DROCC, DROCCOutlierDetector, networks
from drocc_ext.estimators.deploy import DetectorModule

DYNAMIC = ({0: torch.export.Dim.DYNAMIC},)
# One network of each kind, and enough rows for one, not three.
KINDS: dict[str, dict[str, Any]] = {
    "default": {"network": (16,)},
    "no rare columns": {"network": (16,)},
    "algorithm 1": {"hidden": 16},
    "arrays": {
        "network": nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 1))
    },
}


def table(rng: np.random.Generator, count: int) -> np.ndarray[Any, Any]:
    """Columns that vary, one that does so rarely, one that never does, one with far values."""
    x = rng.normal(size=(count, 6)) * [1, 10, 0.1, 1, 1, 1]
    x[:, 3] = 0.1
    x[:, 4] = np.where(rng.random(count) < 0.004, 1.0, 0.0)
    x[0, 5] = 1e6
    return x


def data(kind: str, rng: np.random.Generator) -> tuple[Any, Any]:
    """Training rows, and others of which some deviate in every way."""
    if kind == "arrays":
        return rng.normal(size=(300, 3, 4)), rng.normal(size=(50, 3, 4)) * 2
    if kind == "no rare columns":
        return rng.normal(size=(600, 4)), rng.normal(size=(50, 4)) * 3
    test = table(rng, 50)
    test[10:20, 3] = 0.2
    test[15:30, 4] = 3.0
    test[25:40, :2] += 100
    return table(rng, 600), test


def fitted(kind: str, rows: Any, estimator: Any = DROCC) -> Any:
    return estimator(max_steps=20, random_state=0, **KINDS[kind]).fit(rows)


@pytest.mark.filterwarnings("ignore:.*constant in training")
@pytest.mark.parametrize("estimator", [DROCC, DROCCOutlierDetector])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_and_labels_are_the_detectors(
    kind: str, estimator: Any, rng: np.random.Generator
) -> None:
    train, test = data(kind, rng)
    detector = fitted(kind, train, estimator)
    module = detector.to_module()
    scores, labels = module(torch.from_numpy(test))
    pyods = isinstance(detector, DROCC)
    wanted = detector.decision_function(test) if pyods else -detector.score_samples(test)
    np.testing.assert_allclose(scores.numpy(), wanted, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(labels.numpy(), detector.predict(test) == (1 if pyods else -1))
    assert scores.dtype is torch.float64 and labels.dtype is torch.bool


def test_the_threshold_is_the_one_in_force(rng: np.random.Generator) -> None:
    train, test = data("algorithm 1", rng)
    detector = fitted("algorithm 1", train)
    detector.threshold_ = float(np.median(detector.decision_function(test)))
    _, labels = detector.to_module()(torch.from_numpy(test))
    assert labels.sum() == 25
    other = fitted("algorithm 1", train, DROCCOutlierDetector)
    other.contamination = 0.4
    _, labels = other.to_module()(torch.from_numpy(test))
    np.testing.assert_array_equal(labels.numpy(), other.predict(test) == -1)


def test_what_a_detector_refuses(rng: np.random.Generator) -> None:
    train, test = data("default", rng)
    module = fitted("default", train).to_module()
    test[0, 0], test[1, 1], test[2, 5] = np.nan, np.inf, -np.inf
    scores, labels = module(torch.from_numpy(test))
    assert scores[0].isnan() and labels[0]
    assert scores[1:].isfinite().all()
    assert module(torch.empty(0, 6))[0].shape == (0,)
    for width in (5, 7):
        with pytest.raises(ValueError, match=rf"x must have shape \[N, 6\], got \(4, {width}\)"):
            module(torch.zeros(4, width))
    with pytest.raises(NotFittedError):
        DROCC().to_module()


def test_float32_rows_do_not_deviate_by_rounding(rng: np.random.Generator) -> None:
    """0.1 in float32 is another number than in float64; the column is constant all the same."""
    train, test = data("default", rng)
    module = fitted("default", train).to_module()
    test = table(rng, 50)
    exact, _ = module(torch.from_numpy(test))
    rounded, _ = module(torch.from_numpy(test).float())
    torch.testing.assert_close(rounded, exact, rtol=1e-3, atol=1e-3)


def test_the_module_is_a_copy(rng: np.random.Generator) -> None:
    train, test = data("algorithm 1", rng)
    detector = fitted("algorithm 1", train)
    module = detector.to_module()
    before = module(torch.from_numpy(test))[0]
    with torch.no_grad():
        for parameter in detector.network_.parameters():
            parameter.zero_()
    assert torch.equal(module.train()(torch.from_numpy(test))[0], before)
    assert not any(part.training for part in module.network.modules())
    assert not any(part.requires_grad for part in module.parameters())


def exported(kind: str, train: Any, test: Any) -> tuple[DetectorModule, Any]:
    module = fitted(kind, train).to_module()
    rows = torch.from_numpy(test[:3])
    return module, torch.export.export(module, (rows,), dynamic_shapes=DYNAMIC)


SCORE = """
import sys
sys.modules["drocc_ext"] = sys.modules["sklearn"] = None  # as if not installed
import torch
rows, scores, labels = torch.load(sys.argv[2])
if sys.argv[3] == "export":
    run = torch.export.load(sys.argv[1]).module()
else:
    run = torch._inductor.aoti_load_package(sys.argv[1])
for count in (1, 2, len(rows)):
    found = run(rows[:count])
    torch.testing.assert_close(found[0], scores[:count], rtol=1e-6, atol=1e-6)
    assert torch.equal(found[1], labels[:count])
assert sys.modules["drocc_ext"] is None
print("same")
"""


def test_an_exported_program_needs_no_drocc_ext(rng: np.random.Generator, tmp_path: Path) -> None:
    train, test = data("default", rng)
    module, program = exported("default", train, test)
    torch.export.save(program, tmp_path / "detector.pt2")
    rows = torch.from_numpy(test)
    torch.save((rows, *module(rows)), tmp_path / "rows.pt")
    files = (tmp_path / "detector.pt2", tmp_path / "rows.pt")
    assert python("-c", SCORE, *files, "export", cwd=tmp_path) == "same\n"


@pytest.mark.parametrize("kind", KINDS)
def test_exported_programs_are_saved_and_loaded(
    kind: str, rng: np.random.Generator, tmp_path: Path
) -> None:
    train, test = data(kind, rng)
    module, program = exported(kind, train, test)
    torch.export.save(program, tmp_path / "detector.pt2")
    loaded = torch.export.load(tmp_path / "detector.pt2").module()
    rows = torch.from_numpy(test)
    for found, wanted in zip(loaded(rows), module(rows), strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_aotinductor(kind: str, rng: np.random.Generator, tmp_path: Path) -> None:
    train, test = data(kind, rng)
    module, program = exported(kind, train, test)
    path = tmp_path / "compiled.pt2"
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    rows = torch.from_numpy(test)
    torch.save((rows, *module(rows)), tmp_path / "rows.pt")
    assert python("-c", SCORE, path, tmp_path / "rows.pt", "aoti", cwd=tmp_path) == "same\n"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_onnx(kind: str, rng: np.random.Generator, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="needs onnx and onnxscript")
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    train, test = data(kind, rng)
    test[3].flat[0] = np.nan
    module, program = exported(kind, train, test)
    path = str(tmp_path / "detector.onnx")
    torch.onnx.export(program, (), path, dynamo=True, verbose=False)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (name,) = [given.name for given in session.get_inputs()]
    scores, labels = module(torch.from_numpy(test))
    for count in (1, 4, len(test)):
        found, above = session.run(None, {name: test[:count]})
        np.testing.assert_allclose(found, scores[:count].numpy(), rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(above, labels[:count].numpy())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_torchscript() -> None:
    """Refused in a sentence, on its own or within another module; traced as it is."""
    shapes: dict[nn.Module, tuple[int, ...]] = {
        networks.MLP(3): (2, 3),
        networks.MLP(3, (4, 5)): (2, 3),
        networks.MLPEnsemble(3, 4, members=2): (2, 3),
        networks.CIFARLeNet(): (2, 3, 32, 32),
        networks.MNISTLeNet(): (2, 1, 28, 28),
    }
    for network, shape in shapes.items():
        for whole in (network, nn.Sequential(network)):
            with pytest.raises(TypeError, match=r"is not written in TorchScript; use torch.export"):
                torch.jit.script(whole)
        x = torch.randn(shape)
        network.eval()
        traced: Any = torch.jit.trace(network, x)
        with torch.no_grad():
            wanted: Tensor = network(x)
            torch.testing.assert_close(traced(x), wanted)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(sys.version_info >= (3, 14), reason="torch.jit ends with Python 3.13")
def test_the_lstm_is_written_in_torchscript() -> None:
    network = networks.LSTMClassifier(3, 4)
    x = torch.randn(2, 5, 3)
    torch.testing.assert_close(torch.jit.script(network)(x), network(x))


class Largest(TorchDispatchMode):
    """Takes note of the largest tensor that an operator makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for each in found if isinstance(found, tuple | list) else (found,):
            if isinstance(each, Tensor):
                self.elements = max(self.elements, each.numel())
        return found


def test_memory_does_not_grow_with_the_rows_kept(rng: np.random.Generator) -> None:
    detector = DROCC(max_steps=5, network=(16,), random_state=0).fit(rng.normal(size=(5000, 3)))
    assert len(detector.network_.rows) == 4096
    x = rng.normal(size=(3000, 3)) * 3
    x[:100] = detector.network_.rows[:100]  # near some of the first block and of the last
    x[100:200] = detector.network_.rows[-100:]
    with Largest() as largest:
        scores, _ = detector.to_module()(torch.from_numpy(x))
    assert largest.elements <= 3000 * 150
    np.testing.assert_allclose(scores, detector.decision_function(x), rtol=1e-6, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*constant in training")
def test_all_that_a_detector_computes_with_is_in_its_state(rng: np.random.Generator) -> None:
    one = fitted("default", table(rng, 600))
    other = fitted("default", table(rng, 600) * 2 + 1)
    test = torch.from_numpy(table(rng, 600))
    module = other.to_module()
    module.load_state_dict(one.to_module().state_dict())
    torch.testing.assert_close(module(test), one.to_module()(test), rtol=0, atol=0)
