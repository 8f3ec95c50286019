"""Files that somebody else has written or damaged: read right, or refused in one sentence."""

from __future__ import annotations

import copy
import gzip
import hashlib
import io
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from fuzzing import budget, changed, damaged, is_one_sentence, no_hang
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from drocc_ext import DROCCLoss, SearchConfig, Trainer
from drocc_ext.cli.tables import Table, read_table
from drocc_ext.estimators import DROCC
from drocc_ext.models.networks import MLP
from drocc_ext.models.persistence import checksum

pandas = pytest.importorskip("pandas", reason="the command line reads text by pandas")
SEEDS = st.integers(0, 2**32 - 1)
ROWS = np.random.default_rng(0).normal(size=(20, 3))


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        yield directory


def check_read(path: str, **options: Any) -> Table | None:
    """Read a table, which is one, or is refused in one sentence."""
    try:
        with no_hang():
            table = read_table(path, **options)
    except (ValueError, OSError) as error:
        assert is_one_sentence(error), error
        return None
    assert table.values.dtype == np.float64
    assert table.values.ndim == 2
    assert 0 not in table.values.shape
    assert np.isfinite(table.values).all()
    assert table.names is None or len(table.names) == table.values.shape[1]
    assert table.labels is None or len(table.labels.values) == len(table.values)
    return table


CELLS = st.one_of(
    st.floats().map(repr),
    st.integers().map(str),
    st.sampled_from(
        ["", " ", "nan", "inf", "-", "x", "1_0", "True", "false", '"', "'", '"a,b"', "1,5", "0x1"]
    ),
    st.text(max_size=4),
)
OPTIONS = st.fixed_dictionaries(
    {
        "label": st.sampled_from([None, None, "0", "-1", "a", "5", "x"]),
        "exclude": st.lists(st.sampled_from(["0", "1", "a", "b", "-2"]), max_size=2),
    }
)


@given(
    cells=st.lists(st.lists(CELLS, min_size=1, max_size=4), max_size=5),
    separator=st.sampled_from([",", ";", "\t", ", "]),
    end=st.sampled_from(["\n", "\r\n", "\r", "\n\n"]),
    header=st.sampled_from([None, "a,b,c", ",a,b", '"a,b",c', "a", "nan,inf", "a,a"]),
    suffix=st.sampled_from([".csv", ".tsv", ".csv.gz", ".csv"]),
    options=OPTIONS,
)
@budget(220)
def test_text(
    cells: list[list[str]],
    separator: str,
    end: str,
    header: str | None,
    suffix: str,
    options: dict[str, Any],
) -> None:
    lines = ([] if header is None else [header]) + [separator.join(line) for line in cells]
    content = end.join(lines).encode(errors="surrogatepass")
    path = Path(f"a{suffix}")
    path.write_bytes(content if suffix != ".csv.gz" else gzip.compress(content, 1))
    check_read(str(path), **options)


@given(
    values=st.lists(
        st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=3, max_size=3),
        min_size=1,
        max_size=6,
    ),
    suffix=st.sampled_from([".csv", ".tsv", ".npy", ".npz"]),
    index=st.booleans(),
)
@budget(100)
def test_values_come_back_to_the_bit(values: list[list[float]], suffix: str, index: bool) -> None:
    rows = np.array(values)
    path = f"b{suffix}"
    if suffix in (".csv", ".tsv"):
        frame = pandas.DataFrame(rows, columns=["x", "y, z", "ü"])
        frame.to_csv(path, index=index, sep="," if suffix == ".csv" else "\t")
    elif suffix == ".npy":
        np.save(path, np.asfortranarray(rows) if index else rows)
    else:
        np.savez_compressed(path, X=rows)
    table = read_table(path)
    np.testing.assert_array_equal(table.values.view(np.int64), rows.view(np.int64))


def array_bytes(rng: np.random.Generator, suffix: str) -> bytes:
    kinds: list[Any] = [
        np.float64,
        np.float32,
        np.int8,
        np.bool_,
        ">f8",
        np.complex64,
        "U3",
        "M8[s]",
    ]
    shape = tuple(rng.integers(0, 4, rng.integers(0, 4)))
    array = np.ones(shape).astype("int64").astype(kinds[rng.integers(len(kinds))])
    file = io.BytesIO()
    if suffix == ".npy":
        np.save(file, array)
    else:
        save = np.savez if rng.random() < 0.5 else np.savez_compressed
        save(file, **{"X": array, **({"y": np.arange(3)} if rng.random() < 0.7 else {})})
    return file.getvalue()


@given(seed=SEEDS, suffix=st.sampled_from([".npy", ".npz"]), options=OPTIONS)
@budget(220)
def test_arrays(seed: int, suffix: str, options: dict[str, Any]) -> None:
    rng = np.random.default_rng(seed)
    content = array_bytes(rng, suffix)
    if rng.random() < 0.8:
        content = damaged(rng, content)
    Path(f"c{suffix}").write_bytes(content)
    key = ["X", "y", None][rng.integers(3)] if suffix == ".npz" else None
    check_read(f"c{suffix}", key=key, **options)


@given(seed=SEEDS)
@budget(20)
def test_parquet(seed: int) -> None:
    pytest.importorskip("pyarrow", reason="pandas reads Parquet by it")
    rng = np.random.default_rng(seed)
    frame = pandas.DataFrame(ROWS, columns=["a", "b", "c"])
    frame["d"] = ["x", "y"] * 10
    frame.to_parquet(file := io.BytesIO())
    Path("d.parquet").write_bytes(damaged(rng, file.getvalue()))
    check_read("d.parquet", exclude=["d"])


@cache
def saved() -> tuple[dict[str, Any], bytes, bytes]:
    """A saved estimator: its description, its weights, the scores of ROWS."""
    fitted = DROCC(random_state=0, max_steps=2, hidden=4, num_steps=1).fit(ROWS)
    fitted.save("model")
    description = json.loads(Path("model/config.json").read_text())
    weights = (Path("model") / description["weights"]).read_bytes()
    scores = fitted.decision_function(ROWS)
    return description, weights, scores.tobytes()


def check_model(directory: Path) -> bytes | None:
    """Load an estimator, which works, or is refused in one sentence."""
    try:
        with no_hang():
            loaded = DROCC.load(directory)
    except (ValueError, FileNotFoundError) as error:
        assert is_one_sentence(error), error
        return None
    scores = loaded.decision_function(np.zeros((4, loaded.n_features_in_)))
    assert not np.isnan(scores).any()
    loaded.predict_proba(np.zeros((4, loaded.n_features_in_)))
    loaded.get_params()
    if loaded.n_features_in_ != ROWS.shape[1]:
        return b""
    scores = loaded.decision_function(ROWS)
    return bytes(scores.tobytes())


def write_model(directory: Path, description: Any, weights: bytes) -> None:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(description))
    name = description.get("weights") if isinstance(description, dict) else None
    if isinstance(name, str) and name.startswith("weights-") and "/" not in name:
        (directory / name).write_bytes(weights)


@given(seed=SEEDS)
@budget(130)
def test_models_damaged(seed: int) -> None:
    """Whatever is flipped or cut, a model is the one that was saved, or it is refused."""
    description, weights, scores = saved()
    rng = np.random.default_rng(seed)
    directory = Path("damaged")
    write_model(directory, description, weights)
    name = "config.json" if rng.random() < 0.5 else description["weights"]
    content = (directory / name).read_bytes()
    (directory / name).write_bytes(damaged(rng, content))
    assert check_model(directory) in (None, scores)


@given(seed=SEEDS)
@budget(130)
def test_models_by_others(seed: int) -> None:
    """With a checksum that fits, whatever the values are."""
    description, weights, _ = saved()
    rng = np.random.default_rng(seed)
    if rng.random() < 0.3:
        tensors = safetensors.torch.load(weights)
        name = list(tensors)[rng.integers(len(tensors))]
        kind = rng.integers(4)
        if kind == 0:
            tensors[name] = tensors[name].to(
                [torch.int32, torch.float16, torch.bool][rng.integers(3)]
            )
        elif kind == 1:
            tensors[name] = torch.zeros(tuple(rng.integers(0, 5, rng.integers(0, 3))))
        elif kind == 2:
            tensors[f"{name}.more"] = tensors.pop(name)
        else:
            tensors[name] = tensors[name] * [float("nan"), 1e300, 0.0][rng.integers(3)]
        weights = safetensors.torch.save(tensors)
    else:
        description = changed(rng, description)
    if isinstance(description, dict):
        if rng.random() < 0.8:
            description = {**description, "sha256": hashlib.sha256(weights).hexdigest()}
        description = {**description, "checksum": checksum(description)}
    write_model(Path("other"), description, weights)
    check_model(Path("other"))


SEARCH = SearchConfig(radius=1.0, step_size=0.2, num_steps=1)


def trainer() -> Trainer:
    torch.manual_seed(0)
    model = MLP(3, hidden=4)
    optimizer = torch.optim.Adam(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    return Trainer(model, DROCCLoss(SEARCH), optimizer, scheduler=scheduler, progress=False)


def fit(which: Trainer, **arguments: Any) -> None:
    rows = torch.from_numpy(ROWS).float()
    which.fit(rows, validation=rows, batch_size=20, seed=1, checkpoint_dir="fit", **arguments)


@cache
def content() -> dict[str, Any]:
    """A checkpoint after one epoch."""
    fit(trainer(), epochs=1)
    loaded: dict[str, Any] = torch.load("fit/checkpoint.pt", weights_only=True)
    return loaded


def other_part(rng: np.random.Generator) -> Any:
    parts: list[Any] = [
        None, True, 0, -1, 2, 1.5, float("nan"), "x", b"x", [], {}, (), [1], {"a": 1}, (1, 2),
        torch.zeros(3), torch.zeros(4, 3, dtype=torch.int64), torch.zeros(5056, dtype=torch.uint8),
        torch.tensor(1.0), torch.Size([2]), 10**30, {0: {}}, [{"params": [0]}],
    ]  # fmt: skip
    return parts[rng.integers(len(parts))]


def state_of(which: Trainer) -> list[Any]:
    assert which.scheduler is not None
    return copy.deepcopy(
        [dict(which.model.state_dict()), which.optimizer.state_dict(), which.scheduler.state_dict()]
    )


def same(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return bool(one == two)


@given(seed=SEEDS)
@budget(60)
def test_checkpoints_by_others(seed: int) -> None:
    """A fit goes on from it, or nothing has changed."""
    rng = np.random.default_rng(seed)
    torch.save(changed(rng, content(), other_part), "fit/checkpoint.pt")
    resumed = trainer()
    before = state_of(resumed)
    try:
        with no_hang():
            fit(resumed, epochs=2, resume=True)
    except (ValueError, FloatingPointError) as error:
        assert is_one_sentence(error), error
        if isinstance(error, ValueError):
            assert same(state_of(resumed), before)


@given(seed=SEEDS)
@budget(40)
def test_checkpoints_damaged(seed: int) -> None:
    rng = np.random.default_rng(seed)
    torch.save(content(), file := io.BytesIO())
    Path("fit/checkpoint.pt").write_bytes(damaged(rng, file.getvalue()))
    resumed = trainer()
    before = state_of(resumed)
    try:
        with no_hang():
            fit(resumed, epochs=2, resume=True)
    except (ValueError, FloatingPointError) as error:
        assert is_one_sentence(error), error
        if isinstance(error, ValueError):
            assert same(state_of(resumed), before)
