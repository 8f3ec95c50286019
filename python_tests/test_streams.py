"""Rows read block by block: the same rows, the same numbers, and memory that does not grow."""

from __future__ import annotations

import decimal
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import python
from rank_cases import run_ranks
from torch.nn.parallel import DistributedDataParallel

from drocc_ext import DROCCLoss, SearchConfig, Trainer, suggest_radius
from drocc_ext.estimators import DROCC
from drocc_ext.estimators.columns import Standardizer
from drocc_ext.models.networks import MLP
from drocc_ext.streams import (
    NpyBlocks,
    ParquetBlocks,
    RowStream,
    radius_among_all,
    score_to_file,
    summarize,
)

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
GIGABYTES = float(os.environ.get("DROCC_STREAM_GB", "2"))


def rows(seed: int, count: int = 103) -> Any:
    x = np.random.default_rng(seed).normal(size=(count, 4)) * [1, 10, 0.1, 3] + 5
    x[:, 0] = np.arange(count)  # tells which row it is
    return x


def npy(directory: Path, seed: int, block_rows: int = 20) -> NpyBlocks:
    np.save(directory / "rows.npy", rows(seed))
    return NpyBlocks(directory / "rows.npy", block_rows)


def in_parquet(directory: Path, seed: int) -> ParquetBlocks:
    x = rows(seed)
    table = pyarrow.table({**{f"c{i}": x[:, i] for i in range(4)}, "y": np.arange(103) % 2})
    parquet.write_table(table.slice(0, 60), directory / "one.parquet", row_group_size=25)
    parquet.write_table(table.slice(60), directory / "two.parquet", row_group_size=25)
    return ParquetBlocks([directory / "one.parquet", directory / "two.parquet"], label="y")


def test_blocks_hold_the_rows(tmp_path: Path, seed: int) -> None:
    for blocks in (npy(tmp_path, seed), in_parquet(tmp_path, seed)):
        parts = [blocks.read(number) for number in range(len(blocks))]
        np.testing.assert_array_equal(np.concatenate([x for x, _ in parts]), rows(seed))
    assert [len(x) for x, _ in parts] == [25, 25, 10, 25, 18]
    np.testing.assert_array_equal(np.concatenate([y for _, y in parts]), np.arange(103) % 2)
    chosen = ParquetBlocks(tmp_path / "one.parquet", columns=["c2", "c0"])
    np.testing.assert_array_equal(chosen.read(1)[0], rows(seed)[25:50, [2, 0]])


@pytest.mark.parametrize("kind", [pyarrow.decimal128(10, 2), pyarrow.decimal256(60, 30)])
def test_decimals_are_numbers(kind: object, tmp_path: Path) -> None:
    cells = [decimal.Decimal("1.25"), decimal.Decimal("-0.1"), None]
    table = pyarrow.table({"a": pyarrow.array(cells, kind), "b": [1, 2, 3]})
    parquet.write_table(table, tmp_path / "d.parquet")
    read, _ = ParquetBlocks(tmp_path / "d.parquet").read(0)
    np.testing.assert_array_equal(read, [[1.25, 1], [-0.1, 2], [np.nan, 3]])
    assert read.dtype == np.float64


@pytest.mark.parametrize("order", [None, 3])
def test_a_stream_gives_each_row_once(order: int | None, tmp_path: Path, seed: int) -> None:
    stream = RowStream(in_parquet(tmp_path, seed), 16, seed=order, mixed_blocks=2)
    passes = []
    for epoch in (0, 1, 1):
        stream.set_epoch(epoch)
        batches = list(stream)
        assert [len(x) for x, _ in batches] == [16] * 6 + [7]
        x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
        assert x.dtype == torch.float32 and torch.equal(x[:, 0].long() % 2, y)
        passes.append(x[:, 0].tolist())
    assert sorted(passes[0]) == list(range(103))
    assert passes[1] == passes[2]
    assert (passes[0] == passes[1]) == (order is None)
    assert (passes[0] == sorted(passes[0])) == (order is None)


@pytest.mark.parametrize("order", [None, 3])
def test_ranks_share_the_blocks(order: int | None, tmp_path: Path, seed: int) -> None:
    seen = []
    for rank in range(3):
        stream = RowStream(npy(tmp_path, seed), 8, seed=order)
        stream.share(rank, 3)
        seen += [int(row[0]) for batch in stream for row in batch]
    assert sorted(seen) == list(range(103))


def test_a_summary_is_that_of_all_rows(tmp_path: Path, seed: int) -> None:
    x = rows(seed)
    summary = summarize(npy(tmp_path, seed), sample_rows=30, seed=seed)
    assert summary.count == 103
    np.testing.assert_allclose(summary.mean, x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(summary.deviation, x.std(axis=0), rtol=1e-12)
    numbers = summary.sample[:, 0].astype(int)
    assert len(numbers) == len(set(numbers)) == 30
    np.testing.assert_array_equal(summary.sample, x[numbers])
    whole = summarize(npy(tmp_path, seed))
    np.testing.assert_array_equal(whole.sample, x)
    scaler, expected = whole.standardizer(), Standardizer.fit("test", x)
    np.testing.assert_allclose(scaler.transform(x), expected.transform(x), rtol=1e-9)


def test_each_row_has_the_same_chance_to_be_in_the_sample(tmp_path: Path, seed: int) -> None:
    blocks = npy(tmp_path, seed)
    drawn = np.zeros(103)
    for number in range(400):
        drawn[summarize(blocks, sample_rows=30, seed=number).sample[:, 0].astype(int)] += 1
    # 400 draws of chance 30 / 103: deviation 9.1 around 116.5.
    assert drawn.sum() == 400 * 30
    assert np.abs(drawn - 116.5).max() < 6 * 9.1


def test_the_radius_among_all_rows_is_that_of_suggest_radius(tmp_path: Path, seed: int) -> None:
    x, blocks = rows(seed), npy(tmp_path, seed)
    scaler = Standardizer.fit("test", x)
    found = radius_among_all(blocks, x, scaler.transform, k=4, quantile=0.9)
    assert found == pytest.approx(suggest_radius(scaler.transform(x), k=4, quantile=0.9), rel=1e-6)


def test_scores_are_written_whole_or_not_at_all(tmp_path: Path, seed: int) -> None:
    x, blocks, out = rows(seed), npy(tmp_path, seed), tmp_path / "scores.npy"
    detector = DROCC(max_steps=3, random_state=0).fit(x)
    assert score_to_file(detector.decision_function, blocks, out) == 103
    scores = np.load(out)
    np.testing.assert_allclose(scores, detector.decision_function(x), rtol=1e-5, atol=1e-6)

    def fails_later(part: Any) -> Any:
        if part[0, 0] > 50:
            raise ArithmeticError("no more")
        return part[:, 0]

    with pytest.raises(ArithmeticError):
        score_to_file(fails_later, blocks, out)
    np.testing.assert_array_equal(np.load(out), scores)
    with pytest.raises(ValueError, match="one number per row, got shape"):
        score_to_file(lambda part: part, blocks, out)
    before = blocks.path.read_bytes()
    (tmp_path / "link.npy").symlink_to(blocks.path)
    for path in (blocks.path, tmp_path / "link.npy"):
        with pytest.raises(ValueError, match="path must be another file than the rows'"):
            score_to_file(detector.decision_function, blocks, path)
    assert blocks.path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["link.npy", "rows.npy", "scores.npy"]


def test_a_file_that_has_changed_is_named(tmp_path: Path, seed: int) -> None:
    blocks = npy(tmp_path, seed)
    for number in (-1, len(blocks)):
        with pytest.raises(ValueError, match=r"rows\.npy: number must be from 0 to"):
            blocks.read(number)
    os.truncate(blocks.path, 200)
    with pytest.raises(ValueError, match=r"rows\.npy: the file has changed"):
        blocks.read(0)
    blocks = npy(tmp_path, seed)
    np.save(blocks.path, rows(seed).astype(np.float32))
    with pytest.raises(ValueError, match=r"rows\.npy: the file has changed"):
        blocks.read(0)


@pytest.mark.parametrize(("scale", "offset"), [(1, 1e8), (1e-170, 0), (1e200, 0)])
def test_the_radius_among_all_at_any_scale(
    scale: float, offset: float, tmp_path: Path, seed: int
) -> None:
    x = np.random.default_rng(seed).normal(size=(300, 4)) * scale + offset
    np.save(tmp_path / "x.npy", x)
    found = radius_among_all(NpyBlocks(tmp_path / "x.npy", 64), x, lambda part: part)
    assert found == pytest.approx(suggest_radius(x), rel=1e-12)
    np.save(tmp_path / "x.npy", np.repeat(x[:40], 8, axis=0))
    with pytest.raises(ValueError, match="must be there and apart"):
        radius_among_all(NpyBlocks(tmp_path / "x.npy", 64), x[:40], lambda part: part)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text", "not a readable numpy file"),
        (np.zeros((3, 0)), "at least one value"),
        (np.zeros(3), r"numbers of shape \[N, \*\], got float64 of shape \(3,\)"),
        (np.array([["a"]]), "must be numbers"),
        (np.asfortranarray(np.zeros((3, 2))), "one after the other"),
    ],
)
def test_other_files_are_refused(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
    with pytest.raises(ValueError, match=message):
        NpyBlocks(path)


def test_bad_parquet_and_rows_are_refused(tmp_path: Path, seed: int) -> None:
    in_parquet(tmp_path, seed)
    with pytest.raises(ValueError, match=r"must have a column 'z', got c0, c1"):
        ParquetBlocks(tmp_path / "one.parquet", label="z")
    (tmp_path / "bad.parquet").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"bad.parquet: not a readable Parquet file"):
        ParquetBlocks(tmp_path / "bad.parquet")
    one = tmp_path / "one.parquet"
    for columns, error, message in (
        ("c0", TypeError, "columns must be a list of names, got 'c0'"),
        ([], TypeError, r"columns must be a list of names, got \[\]"),
        ([1], TypeError, r"columns must be a list of names, got \[1\]"),
        (["c0", "c1", "c0"], ValueError, "columns must differ, got 'c0' twice"),
        (["c0", "y"], ValueError, "columns must not hold the label, got 'y'"),
    ):
        with pytest.raises(error, match=f"ParquetBlocks: {message}"):
            ParquetBlocks(one, columns=columns, label="y")
    blocks = ParquetBlocks(one)
    for number in (-1, 3):
        with pytest.raises(ValueError, match=f"number must be from 0 to 2, got {number}"):
            blocks.read(number)
    parquet.write_table(pyarrow.table({"c0": [1.0]}), one)
    with pytest.raises(ValueError, match=r"one\.parquet: the file has changed"):
        blocks.read(0)
    np.save(tmp_path / "nan.npy", np.array([[1.0, 2.0], [3.0, np.nan]]))
    with pytest.raises(ValueError, match="got NaN or infinity in row 1"):
        summarize(NpyBlocks(tmp_path / "nan.npy", 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": "a"}, "seed must be an integer, got 'a'"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
        ({"dtype": torch.int64}, "dtype must be a floating-point type, got torch.int64"),
        ({"blocks": 3}, r"blocks must have read\(number\) and a length, such as .*, got int"),
        ({"transform": 3}, "transform must be callable or None, got int"),
    ],
)
def test_settings_of_a_stream(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    settings = {"blocks": npy(tmp_path, 0), "batch_size": 16} | options
    with pytest.raises((TypeError, ValueError), match=f"RowStream: {message}"):
        RowStream(**settings)


def trained(directory: Path, seed: int, distributed: bool) -> Any:
    blocks = NpyBlocks(directory / "rows.npy", 20)
    stream = RowStream(blocks, 16, transform=summarize(blocks).standardizer().transform, seed=seed)
    torch.manual_seed(seed)
    net = MLP(4, (16,))
    model = DistributedDataParallel(net) if distributed else net
    loss = DROCCLoss(SearchConfig(radius=1.0, step_size=0.2, num_steps=2))
    trainer = Trainer(model, loss, torch.optim.Adam(net.parameters()), progress=False)
    history = trainer.fit(stream, epochs=2, seed=seed)
    return [record["step"] for record in history], list(net.parameters())


def test_a_trainer_takes_a_stream(tmp_path: Path, seed: int) -> None:
    """Blocks 0 to 5 have 20, ..., 3 rows: how many steps two ranks take depends on the order."""
    npy(tmp_path, seed)
    assert trained(tmp_path, seed, False)[0] == [7, 14]
    one, two = run_ranks(tmp_path, trained, tmp_path, seed, True)
    assert not isinstance(one, Exception), one
    assert one[0] == two[0] and one[0][0] == 4
    for first, second in zip(one[1], two[1], strict=True):
        assert torch.equal(first, second)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """A sparse file of DROCC_STREAM_GB; a small one shows what the program itself needs."""
    peaks = []
    for gigabytes in (0.05, GIGABYTES):
        path = tmp_path / f"{gigabytes}.npy"
        printed = python(Path(__file__).with_name("stream_memory.py"), path, str(gigabytes))
        peaks.append(float(printed.split()[0]))
        path.unlink()
    assert peaks[1] < peaks[0] + 100  # MB; the small file's four mixed blocks are not all there


class Listed:
    """Blocks in memory."""

    def __init__(self, *blocks: Any) -> None:
        self.blocks = blocks

    def __len__(self) -> int:
        return len(self.blocks)

    def read(self, number: int) -> Any:
        block = self.blocks[number]
        return block if isinstance(block, tuple) else (block, None)


def test_blocks_without_rows_and_of_odd_numbers(seed: int) -> None:
    x = rows(seed)
    whole = summarize(Listed(x[:20], x[20:20], x[20:]))
    np.testing.assert_allclose(whole.mean, x.mean(0))
    np.testing.assert_allclose(whole.deviation, x.std(0))
    for odd in (x.astype(">f8"), x.astype(np.longdouble)):
        batches = list(RowStream(Listed(odd[:50], odd[50:]), 16))
        np.testing.assert_allclose(torch.cat(batches).numpy(), x, rtol=1e-6, atol=1e-6)


def test_blocks_that_do_not_fit_together_are_named(tmp_path: Path) -> None:
    x, y = np.zeros((7, 2)), np.zeros(7)
    for blocks, message in (
        (Listed(x, x[:, :1]), r"rows of one shape, got \[\(1,\), \(2,\)\]"),
        (Listed((x, y), x), "all blocks must have labels or none"),
    ):
        with pytest.raises(ValueError, match=f"RowStream: .*{message}"):
            list(RowStream(blocks, 4))
    np.savez(tmp_path / "two.npz", a=x, b=y)
    with pytest.raises(ValueError, match=r"two\.npz: must be one array"):
        NpyBlocks(tmp_path / "two.npz")
    with pytest.raises(ValueError, match="summarize: seed must be >= 0, got -1"):
        summarize(Listed(x), seed=-1)


def test_arrays_have_no_columns_to_standardize() -> None:
    for shape in ((4, 3, 1), (4, 2, 2)):
        with pytest.raises(ValueError, match=r"^summarize: blocks must hold rows \[N, D\]"):
            summarize(Listed(np.ones(shape)))


def test_radius_among_rows_that_are_no_numbers(seed: int) -> None:
    x = rows(seed).astype(np.float64)
    bad = x.copy()
    bad[70, 1] = np.nan
    with pytest.raises(ValueError, match="rows must be finite, got NaN or infinity in row 70"):
        radius_among_all(Listed(bad[:40], bad[40:]), x[:9], lambda part: part)
    for queries in (x[:0], x[0]):
        with pytest.raises(ValueError, match=r"queries must be rows \[q, D\], q >= 1, got shape"):
            radius_among_all(Listed(x), queries, lambda part: part)
    with pytest.raises(ValueError, match="queries must be finite"):
        radius_among_all(Listed(x), bad[69:72], lambda part: part)


def test_the_index_of_pandas_is_no_feature(tmp_path: Path, rng: Any) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(rng.normal(size=(40, 2)), columns=["a", "b"])
    frame[frame.a > 0].to_parquet(tmp_path / "a.parquet")
    assert ParquetBlocks(tmp_path / "a.parquet").columns == ["a", "b"]
    blocks = ParquetBlocks(tmp_path / "a.parquet", columns=["a", "__index_level_0__"])
    assert blocks.read(0)[0].shape[1] == 2


def test_paths_and_arrays_are_no_blocks(tmp_path: Path) -> None:
    x: Any = np.zeros((4, 2))
    calls: list[Callable[[], object]] = [
        lambda: summarize(x),
        lambda: summarize("a.npy"),  # type: ignore[arg-type]
        lambda: radius_among_all(x, x, lambda rows: rows),
        lambda: score_to_file(lambda rows: rows[:, 0], x, tmp_path / "o.npy"),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=r"blocks must have read\(number\) and a length"):
            call()


def test_parts_without_rows_are_not_scored(tmp_path: Path, seed: int) -> None:
    x = rows(seed).astype(np.float64)

    def score(part: Any) -> Any:
        assert len(part) > 0  # as DROCC.decision_function asks for
        return part[:, 0]

    assert score_to_file(score, Listed(x[:0], x[:20], x[20:20], x[20:]), tmp_path / "s.npy") == len(
        x
    )
    np.testing.assert_array_equal(np.load(tmp_path / "s.npy"), x[:, 0])


def test_what_a_transform_returns(tmp_path: Path, seed: int) -> None:
    blocks = npy(tmp_path, seed)
    pandas = pytest.importorskip("pandas", reason="tables of pandas")
    forms: list[Any] = [
        lambda x: 2 * x,
        lambda x: pandas.DataFrame(2 * x),
        lambda x: torch.tensor(2 * x),
    ]
    first, *others = [list(RowStream(blocks, batch_size=16, transform=form)) for form in forms]
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=0)
    with pytest.raises(TypeError, match="transform must return numbers, got object"):
        next(iter(RowStream(blocks, batch_size=16, transform=lambda x: x.astype(object))))


@pytest.mark.parametrize("name", ["scores.csv", "scores.parquet", "scores.npy.gz", "S.NPZ"])
def test_scores_go_to_npy_files(name: str, tmp_path: Path, seed: int) -> None:
    with pytest.raises(ValueError, match=r"path must name an \.npy file, got"):
        score_to_file(lambda x: x[:, 0], npy(tmp_path, seed), tmp_path / name)
    assert not (tmp_path / name).exists()
