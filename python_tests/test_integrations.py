"""Lightning, skorch and TensorBoard, as their users run them."""

from __future__ import annotations

import importlib
import io
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from drocc_ext import DROCCLoss, SearchConfig, Trainer, networks
from drocc_ext.training.callbacks import Callback

SEARCH = SearchConfig.from_relative_step(1.0, num_steps=2)


def rows(seed: int, count: int = 96) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


# ---- SearchConfig in files that are loaded without code


def test_settings_load_without_code(seed: int) -> None:
    radius = torch.rand(5, generator=torch.Generator().manual_seed(seed)) + 0.5
    for config in (
        SEARCH,
        SearchConfig(radius, 0.1, 3, gamma=math.inf, method="autograd"),
        SearchConfig(1.0, 0.1, 3, radius_range=(0.5, 2), noise="rows", noise_factor=torch.eye(3)),
    ):
        file = io.BytesIO()
        torch.save({"hyper_parameters": {"search": config}}, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=True)["hyper_parameters"]["search"]
        assert type(loaded) is SearchConfig and loaded == config


@pytest.mark.parametrize("name, value", [("radius", -1.0), ("num_steps", 2.5), ("solver", "other")])
def test_settings_of_a_file_are_checked(name: str, value: Any) -> None:
    config = SearchConfig(1.0, 0.1, 3)
    object.__setattr__(config, name, value)
    file = io.BytesIO()
    torch.save(config, file)
    file.seek(0)
    with pytest.raises(Exception, match=f"SearchConfig: {name} must be"):
        torch.load(file, weights_only=True)


# ---- Lightning


def lightning() -> Any:
    return pytest.importorskip("lightning.pytorch", reason="needs lightning")


def lit_class() -> Any:
    base = lightning().LightningModule

    class Lit(base):  # type: ignore[misc, valid-type]
        def __init__(self, search: SearchConfig, metric: Any = "l2") -> None:
            super().__init__()
            self.save_hyperparameters()
            self.model = networks.MLP(3, 8)
            self.loss = DROCCLoss(search, metric=metric)

        def training_step(self, batch: Any, index: int) -> Tensor:
            terms = self.loss(self.model, batch[0])
            return terms.total

        def validation_step(self, batch: Any, index: int) -> None:
            self.log("objective", self.loss(self.model, batch[0]).total)

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), 1e-2)

    return Lit


def fit_lightning(module: Any, tmp_path: Path, x: Tensor, *callbacks: Any) -> Any:
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=32)
    trainer = lightning().Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, loader, loader)
    return trainer


@pytest.mark.filterwarnings("ignore")
def test_lightning_loads_its_checkpoint(seed: int, tmp_path: Path) -> None:
    lit = lit_class()
    module = lit(SEARCH)
    before = [p.detach().clone() for p in module.model.parameters()]
    trainer = fit_lightning(module, tmp_path, rows(seed))
    assert any(
        not torch.equal(p, q) for p, q in zip(before, module.model.parameters(), strict=True)
    )
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = lit.load_from_checkpoint(tmp_path / "last.ckpt")
    assert loaded.hparams["search"] == SEARCH
    x = rows(seed + 1)
    assert torch.equal(loaded.model(x), module.model(x))


@pytest.mark.filterwarnings("ignore")
def test_lightning_begins_epochs_of_the_loss(seed: int, tmp_path: Path) -> None:
    lightning()
    from drocc_ext.integrations.lightning import StartEpoch

    x = rows(seed)
    module = lit_class()(SEARCH, metric="mahalanobis")
    fit_lightning(module, tmp_path, x)
    assert module.loss.sigma is None
    module = lit_class()(SEARCH, metric="mahalanobis")
    trainer = fit_lightning(module, tmp_path, x, StartEpoch())
    assert module.loss.sigma is not None and module.loss.sigma.shape == (3,)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = lit_class().load_from_checkpoint(tmp_path / "last.ckpt")
    torch.testing.assert_close(loaded.loss.sigma, module.loss.sigma)
    del module.loss
    with pytest.raises(RuntimeError, match="must hold a DROCCLoss"):
        StartEpoch().on_fit_start(None, module)


# ---- skorch


def net(**settings: Any) -> Any:
    pytest.importorskip("skorch", reason="needs skorch")
    from drocc_ext.integrations.skorch import DROCCNet

    given = {"module__in_features": 3, "module__hidden": 8, "max_epochs": 2, "batch_size": 32}
    given |= {"optimizer": torch.optim.Adam, "lr": 1e-2, "verbose": 0}
    return DROCCNet(networks.MLP, **{**given, **settings})


def test_skorch_puts_the_search_together() -> None:
    relative = net(criterion__search__radius=0.5, criterion__mu=2.0).initialize().criterion_
    assert relative.search == SearchConfig.from_relative_step(0.5) and relative.mu == 2.0
    whole = net(criterion__search=SEARCH, criterion__search__num_steps=7)
    assert whole.initialize().criterion_.search == SearchConfig(1.0, 0.1, 7)
    whole.set_params(criterion__search__gamma=3.0)
    assert whole.criterion_.search == SearchConfig(1.0, 0.1, 7, gamma=3.0)
    assert clone(whole).get_params()["criterion__search__gamma"] == 3.0
    with pytest.raises(TypeError, match="other"):
        net(criterion__search__radius=0.5, criterion__search__other=1).initialize()


def test_skorch_trains_as_the_loop_does(seed: int) -> None:
    x = rows(seed, 64)
    for y in (None, (torch.arange(64) % 3 > 0).long()):
        trained = net(
            criterion__search=SEARCH,
            iterator_train__shuffle=False,
            optimizer=torch.optim.SGD,
        )
        trained.initialize()
        model, loss = networks.MLP(3, 8), DROCCLoss(SEARCH)
        model.load_state_dict(trained.module_.state_dict())
        torch.manual_seed(seed)
        trained.partial_fit(x, y)
        torch.manual_seed(seed)
        optimizer = torch.optim.SGD(model.parameters(), 1e-2)
        for _ in range(2):
            torch.empty((), dtype=torch.int64).random_()  # what a DataLoader draws for its workers
            for part in range(0, 64, 32):
                optimizer.zero_grad()
                labels = None if y is None else y[part : part + 32]
                loss(model, x[part : part + 32], labels).total.backward()
                optimizer.step()
        with torch.no_grad():
            wanted = model(x).double().flatten().numpy()
        np.testing.assert_allclose(trained.decision_function(x), wanted, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(trained.predict(x), wanted > 0)


def test_skorch_in_a_grid_search(seed: int) -> None:
    normal = rows(seed, 120)
    x = torch.cat([normal, rows(seed + 1, 40) * 5]).numpy()
    y = np.repeat([1, 0], [120, 40])
    folds = StratifiedKFold(2, shuffle=True, random_state=seed)
    grid = {"criterion__search__radius": [0.2, 1.0]}
    search = GridSearchCV(net(max_epochs=5), grid, scoring="roc_auc", cv=folds)
    search.fit(x, y)
    assert search.best_params_["criterion__search__radius"] in (0.2, 1.0)
    assert search.best_estimator_.criterion_.search.radius in (0.2, 1.0)
    assert search.best_score_ > 0.6


def test_skorch_validates_and_begins_epochs(seed: int) -> None:
    ValidSplit = pytest.importorskip("skorch.dataset", reason="needs skorch").ValidSplit

    trained = net(
        train_split=ValidSplit(3),
        criterion__search=SEARCH,
        criterion__metric="mahalanobis",
    ).fit(rows(seed).numpy())
    assert len(trained.history[:, "valid_loss"]) == 2
    assert trained.criterion_.sigma.shape == (3,)


# ---- TensorBoard


class Reference(Callback):
    """The epochs' records, as they come."""

    def __init__(self) -> None:
        self.records: list[dict[str, float]] = []

    def on_epoch_end(self, trainer: Trainer, record: dict[str, float]) -> None:
        self.records.append(record)


def test_skorch_reads_labels_of_the_dataset(seed: int) -> None:
    data = pytest.importorskip("skorch.dataset", reason="needs skorch")
    helper = pytest.importorskip("skorch.helper", reason="needs skorch")
    x, y = rows(seed).numpy(), (torch.arange(96) % 3 > 0).long().numpy()

    def weights(*given: Any) -> Tensor:
        torch.manual_seed(seed)
        fitted = net(criterion__search=SEARCH).fit(*given)
        found: Tensor = next(fitted.module_.parameters()).detach()
        return found

    whole = data.Dataset(x)
    halves = ConcatDataset([Subset(whole, range(48)), Subset(whole, range(48, 96))])
    for part in (whole, Subset(whole, range(96)), halves):
        torch.testing.assert_close(weights(part), weights(x), rtol=0, atol=0)
    torch.testing.assert_close(weights(data.Dataset(x, y)), weights(x, y), rtol=0, atol=0)
    torch.testing.assert_close(
        weights(Subset(data.Dataset(x, y), range(96))), weights(x, y), rtol=0, atol=0
    )
    with pytest.raises(ValueError, match=r"DROCCNet\.fit: X must serve labels where y is given"):
        weights(whole, y)
    with pytest.raises(ValueError, match="labels, or none, got both"):
        weights(ConcatDataset([whole, data.Dataset(x, y)]))
    # Validation rows are read by their own labels, whatever the training rows have.
    losses = []
    for of_training in (None, y):
        for of_validation in (None, np.ones(96, int), y):
            split = helper.predefined_split(data.Dataset(x, of_validation))
            torch.manual_seed(seed)
            fitted = net(criterion__search=SEARCH, train_split=split).fit(x, of_training)
            losses.append(fitted.history[-1]["valid_loss"])
    for first in (0, 3):
        assert losses[first] == losses[first + 1] != losses[first + 2]


def test_skorch_says_where_a_term_of_ones_own_goes(seed: int) -> None:
    pytest.importorskip("skorch", reason="needs skorch")
    from drocc_ext.integrations.skorch import DROCCNet

    class Own(DROCCNet):
        def get_loss(self, *args: Any, **settings: Any) -> Any:
            return super().get_loss(*args, **settings)

    own = Own(networks.MLP, module__in_features=3, criterion__search=SEARCH, verbose=0)
    with pytest.raises(TypeError, match=r"^DROCCNet\.fit: get_loss is not called"):
        own.fit(rows(seed).numpy())


def test_tensorboard_shows_the_history(seed: int, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from drocc_ext.integrations.tensorboard import TensorBoard

    model, reference = networks.MLP(3, 8), Reference()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    callbacks = [TensorBoard(tmp_path), reference]
    trainer = Trainer(model, DROCCLoss(SEARCH), optimizer, callbacks=callbacks, progress=False)
    trainer.fit(rows(seed), validation=rows(seed + 1), epochs=3, batch_size=32, seed=seed)
    events = EventAccumulator(str(tmp_path)).Reload()
    names = {f"drocc/{name}" for name in reference.records[0]} - {"drocc/step"}
    assert set(events.Tags()["scalars"]) == names and "drocc/monitor" in names
    for name in names:
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        wanted = [(r["step"], r[name.removeprefix("drocc/")]) for r in reference.records]
        np.testing.assert_allclose(shown, wanted, rtol=1e-6)


@pytest.mark.parametrize(
    "package, module, name",
    [
        ("skorch", "skorch", None),
        ("Lightning", "lightning", None),
        ("tensorboard", "tensorboard", "TensorBoard"),
    ],
)
def test_a_missing_package_is_named(
    package: str, module: str, name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = ("skorch", "lightning.pytorch", "pytorch_lightning", "torch.utils.tensorboard.writer")
    for other in hidden:
        monkeypatch.setitem(sys.modules, other, None)
    monkeypatch.delitem(sys.modules, f"drocc_ext.integrations.{module}", raising=False)
    with pytest.raises(ImportError, match=rf"needs {package}, pip install {package.lower()}"):
        imported = importlib.import_module(f"drocc_ext.integrations.{module}")
        getattr(imported, str(name))("somewhere")


def test_only_callbacks_that_watch_batches_take_the_loop(seed: int) -> None:
    from drocc_ext.training.trainer import _watches_batches

    class Watching(Callback):
        def on_batch_end(self, trainer: Trainer, step: int, losses: dict[str, float]) -> None:
            pass

    patched = Callback()
    patched.on_batch_end = lambda *_: None  # type: ignore[method-assign]
    assert [_watches_batches(c) for c in (Callback(), Reference(), Watching(), patched)] == [
        False,
        False,
        True,
        True,
    ]
