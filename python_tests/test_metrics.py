from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from drocc_ext import metrics

METRICS = [metrics.roc_auc, metrics.recall_at_fpr, metrics.f1_top_n, metrics.f1_published]


def sample(seed: int, rows: int = 40, ties: bool = True) -> tuple[Any, Any]:
    """Scores that rank better than chance, with ties, and labels of both classes."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(rows) % 3 > 0).astype(int)
    scores = rng.normal(size=rows) + labels
    return (scores.round(1) if ties else scores), labels


def test_roc_auc_counts_pairs(seed):
    scores, labels = sample(seed)
    normal, anomalous = scores[labels == 1], scores[labels == 0]
    wins = [(a > b) + 0.5 * (a == b) for a, b in itertools.product(normal, anomalous)]
    assert metrics.roc_auc(scores, labels) == pytest.approx(np.mean(wins), abs=1e-12)


@pytest.mark.parametrize("fpr", [0.0, 0.03, 0.1, 0.5, 0.97, 1.0])
def test_recall_is_the_largest_within_the_rate(seed, fpr):
    scores, labels = sample(seed)
    normal, anomalous = scores[labels == 1], scores[labels == 0]
    feasible = [t for t in [*scores, np.inf] if np.mean(anomalous >= t) <= fpr]
    best = max(np.mean(normal >= t) for t in feasible)
    threshold = metrics.threshold_at_fpr(scores, labels, fpr)
    assert np.mean(anomalous >= threshold) <= fpr
    assert np.mean(normal >= threshold) == best
    assert metrics.recall_at_fpr(scores, labels, fpr) == best
    assert metrics.recall_at_fpr(scores, labels, threshold=threshold) == best


@pytest.mark.parametrize("count", range(101))
def test_every_hundredth_is_reached_exactly(count):
    """0.29 * 100 rounds to below 29; one anomaly too few would be let through."""
    anomalous = np.arange(100.0)
    normal = anomalous + 0.5
    scores, labels = np.concatenate([anomalous, normal]), np.repeat([0, 1], 100)
    # The count highest anomalies may pass, so the normal rows from just above the next one on are
    # accepted.
    expected = min(count + 1, 100) / 100
    assert metrics.recall_at_fpr(scores, labels, fpr=count / 100) == expected


def test_threshold_where_nothing_can_be_accepted():
    assert metrics.threshold_at_fpr([1.0, 2.0, 2.0], [1, 1, 0], fpr=0.5) == np.inf
    assert metrics.recall_at_fpr([1.0, 2.0, 2.0], [1, 1, 0], fpr=0.5) == 0.0


def test_threshold_survives_float32(seed):
    scores, labels = sample(seed, 300, ties=False)
    scores = torch.tensor(scores, dtype=torch.float32)
    threshold = metrics.threshold_at_fpr(scores, labels, 0.1)
    accepted = (scores >= threshold).numpy()
    assert np.mean(accepted[labels == 0]) <= 0.1
    assert np.mean(accepted[labels == 1]) == metrics.recall_at_fpr(scores, labels, 0.1)


@pytest.mark.parametrize("n", [None, 1, 3, 6])
def test_f1_top_n_is_the_mean_over_orders_of_tied_rows(seed, n):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, size=6).astype(float)
    labels = rng.permutation([0, 0, 1, 1, 1, 0])
    called = n or 3

    def f1(order: tuple[int, ...]) -> float:
        first = sorted(order, key=lambda row: scores[row])[:called]
        return 2 * sum(labels[row] == 0 for row in first) / (called + 3)

    expected = np.mean([f1(order) for order in itertools.permutations(range(6))])
    assert metrics.f1_top_n(scores, labels, n) == pytest.approx(expected, abs=1e-12)


def test_f1_published_ceiling_and_chance(seed):
    labels = np.repeat([0, 1], 5000)
    ranked = np.arange(10000.0)
    assert metrics.f1_published(ranked, labels) == pytest.approx(0.769, abs=5e-4)
    random = np.random.default_rng(seed).normal(size=10000)
    assert metrics.f1_published(random, labels) == pytest.approx(0.615, abs=0.02)


def test_f1_published_by_hand():
    # 20th percentile of 0..5 is 1.0: row 0 is called anomalous, five rows normal, three of them
    # rightly.
    assert metrics.f1_published([0, 1, 2, 3, 4, 5], [0, 1, 0, 1, 0, 1]) == pytest.approx(2 * 3 / 8)


@pytest.mark.parametrize("metric", METRICS)
def test_accepted_forms_agree(metric, seed):
    scores, labels = sample(seed)
    expected = metric(scores, labels)
    assert isinstance(expected, float)
    assert metric(scores.tolist(), labels.astype(bool)) == expected
    assert metric(scores[:, None], labels[:, None].astype(np.int8)) == expected
    column = torch.tensor(scores, requires_grad=True)[:, None]
    assert metric(column, torch.tensor(labels).float()) == expected
    half = torch.tensor(scores).bfloat16()
    assert metric(half, labels) == metric(half.double(), labels)


@pytest.mark.parametrize("metric", METRICS)
def test_only_the_ranking_counts_not_the_order_of_rows(metric, seed):
    scores, labels = sample(seed)
    order = np.random.default_rng(seed).permutation(len(scores))
    assert metric(scores[order], labels[order]) == pytest.approx(metric(scores, labels))
    assert metric(scores * 4 - 8, labels) == pytest.approx(metric(scores, labels))


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([1.0, 2.0], [1, 0, 1], "same length, got 2 and 3"),
        ([1.0, np.nan], [1, 0], "scores must be finite, got nan in row 1"),
        ([np.inf, 1.0], [1, 0], "scores must be finite, got inf in row 0"),
        ([1.0, 2.0], [1, -1], r"labels must be 1 \(normal\) or 0 \(anomaly\), got -1"),
        ([1.0, 2.0], [1, np.nan], "labels must be .* got nan"),
        ([1.0, 2.0], [1, 1], "both classes, got 2 normal rows and 0 anomalies"),
        ([1.0, 2.0], [0, 0], "both classes, got 0 normal rows and 2 anomalies"),
        ([], [], "both classes, got 0 normal rows and 0 anomalies"),
        (np.ones((2, 2)), [1, 0], r"scores must have shape \[N\] or \[N, 1\], got \(2, 2\)"),
    ],
)
@pytest.mark.parametrize("metric", [*METRICS, metrics.threshold_at_fpr])
def test_bad_input_is_named(metric, scores, labels, message):
    extra = (0.1,) if metric is metrics.threshold_at_fpr else ()
    with pytest.raises(ValueError, match=f"^{metric.__name__}: .*{message}"):
        metric(scores, labels, *extra)


def test_bad_arguments_are_named():
    rows = ([1.0, 2.0], [0, 1])
    for fpr in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match="threshold_at_fpr: fpr must be between 0 and 1, got"):
            metrics.threshold_at_fpr(*rows, fpr=fpr)
        with pytest.raises(ValueError, match="recall_at_fpr: fpr must be between 0 and 1, got"):
            metrics.recall_at_fpr(*rows, fpr=fpr)
    with pytest.raises(ValueError, match="threshold must be a number, got nan"):
        metrics.recall_at_fpr(*rows, threshold=np.nan)
    for n in (0, 3):
        with pytest.raises(ValueError, match=f"f1_top_n: n must be between 1 and 2 .* got {n}"):
            metrics.f1_top_n(*rows, n=n)
    for call in (
        lambda: metrics.f1_top_n(*rows, n=1.5),
        lambda: metrics.f1_top_n(*rows, n="2"),
        lambda: metrics.recall_at_fpr(*rows, fpr="x"),
        lambda: metrics.recall_at_fpr(*rows, threshold="1"),
        lambda: metrics.threshold_at_fpr(*rows, "x"),
        lambda: metrics.evaluate_limited_negatives(groups(0), groups(0), fprs=["a"]),
        lambda: metrics.roc_auc(["a", "b"], [0, 1]),
        lambda: metrics.roc_auc([1j, 2], [0, 1]),
        lambda: metrics.roc_auc(np.array(["a", 2], dtype=object), [0, 1]),
    ):
        with pytest.raises(TypeError, match=r"^[a-z0-9_]+: \w+ must be (a number|an integer|real)"):
            call()


def groups(seed: int, ties: bool = True) -> metrics.GroupScores:
    """Scores of normal rows, far negatives well below and close ones just below them."""
    rng = np.random.default_rng(seed)
    parts = [rng.normal(size=size) + at for size, at in ((50, 2.0), (70, -2.0), (40, 1.0))]
    return metrics.GroupScores(*(part.round(1) if ties else part for part in parts))


def test_limited_negatives_by_hand():
    # Four of the ten validation negatives may pass at 40 %: those above 3, so 4 and up, and the
    # least normal validation score above 3 is 3.5.
    validation = metrics.GroupScores(
        [1.0, 3.0, 3.5, 8.0], [-1.0, 0.0, 0.5, 5.0], [1.0, 2.0, 3.0, 4.0, 6.0, 7.0]
    )
    test = metrics.GroupScores([0.0, 3.4, 3.5, 9.0], [3.5, -5.0], [3.6, 3.4, 10.0])
    result = metrics.evaluate_limited_negatives(validation, test, fprs=(0.4, 0.0))
    loose, strict = result.at_fpr
    assert loose == metrics.RecallAtFPR(
        fpr_bound=0.4,
        threshold=3.5,
        recall=2 / 4,
        fpr=3 / 5,
        fpr_far=1 / 2,
        fpr_close=2 / 3,
        # 40 % of the five test negatives are 10 and 3.6, so only 9 is above the third, 3.5.
        recall_test_threshold=1 / 4,
    )
    assert strict == (0.0, 8.0, 1 / 4, 1 / 5, 0.0, 1 / 3, 0.0)
    # Pairs won: against far 1.5 (the tie with 3.5) + 1 of 2 for the others; none beats 10.
    assert result.auc_far == pytest.approx((1 + 1 + 1.5 + 2) / 8)
    assert result.auc_close == pytest.approx((0 + 0.5 + 1 + 2) / 12)
    assert result.auc == pytest.approx((5.5 + 3.5) / 20)


def test_limited_negatives_on_the_same_rows_is_recall_at_fpr(seed):
    scores = groups(seed)
    rows = np.concatenate(scores), np.repeat([1, 0], [50, 110])
    result = metrics.evaluate_limited_negatives(scores, scores)
    assert result.auc == metrics.roc_auc(*rows)
    assert [at.fpr_bound for at in result.at_fpr] == [0.03, 0.05]
    for at in result.at_fpr:
        assert at.fpr <= at.fpr_bound
        assert at.recall == at.recall_test_threshold == metrics.recall_at_fpr(*rows, at.fpr_bound)
        assert at.threshold == metrics.threshold_at_fpr(*rows, at.fpr_bound)


def test_limited_negatives_properties(seed):
    validation, test = groups(seed), groups(seed + 1)
    result = metrics.evaluate_limited_negatives(validation, test, (0.0, 0.1, 0.5, 1.0))
    for at in result.at_fpr:
        assert at.fpr == pytest.approx((70 * at.fpr_far + 40 * at.fpr_close) / 110)
    recalls = [at.recall for at in result.at_fpr]
    assert recalls == sorted(recalls)
    assert result.auc == pytest.approx((70 * result.auc_far + 40 * result.auc_close) / 110)
    # Other test rows leave the threshold where it is; other validation rows leave the test's own.
    other = metrics.evaluate_limited_negatives(validation, groups(seed + 2), (0.0, 0.1, 0.5, 1.0))
    for at, moved in zip(result.at_fpr, other.at_fpr, strict=True):
        assert at.threshold == moved.threshold
    other = metrics.evaluate_limited_negatives(groups(seed + 2), test, (0.0, 0.1, 0.5, 1.0))
    for at, moved in zip(result.at_fpr, other.at_fpr, strict=True):
        assert at.recall_test_threshold == moved.recall_test_threshold


def test_limited_negatives_takes_every_form(seed):
    validation, test = groups(seed), groups(seed + 1)
    expected = metrics.evaluate_limited_negatives(validation, test)

    def columns(part: metrics.GroupScores) -> metrics.GroupScores:
        return metrics.GroupScores(*(torch.tensor(scores)[:, None] for scores in part))

    assert metrics.evaluate_limited_negatives(columns(validation), columns(test)) == expected
    lists = metrics.GroupScores(*(scores.tolist() for scores in test))
    assert metrics.evaluate_limited_negatives(validation, lists) == expected


def test_limited_negatives_where_nothing_can_be_accepted():
    low = metrics.GroupScores([0.0], [1.0], [2.0])
    (at,) = metrics.evaluate_limited_negatives(low, low, (0.03,)).at_fpr
    assert at.threshold == np.inf
    assert (at.recall, at.fpr, at.recall_test_threshold) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("part", ["validation", "test"])
@pytest.mark.parametrize("group", metrics.GroupScores._fields)
@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([], "must hold at least one score, got none"),
        ([1.0, np.nan], "must be finite, got nan in row 1"),
        ([-np.inf], "must be finite, got -inf in row 0"),
        (np.ones((2, 2)), r"must have shape \[N\] or \[N, 1\], got \(2, 2\)"),
    ],
)
def test_limited_negatives_names_a_bad_group(part, group, scores, message):
    parts = {"validation": groups(0), "test": groups(1)}
    parts[part] = parts[part]._replace(**{group: scores})
    sentence = rf"^evaluate_limited_negatives: {part}\.{group} {message}$"
    with pytest.raises(ValueError, match=sentence):
        metrics.evaluate_limited_negatives(**parts)


def test_limited_negatives_names_a_bad_rate():
    for fpr in (-0.1, 1.1, np.nan):
        sentence = f"^evaluate_limited_negatives: fprs must be between 0 and 1, got {fpr}$"
        with pytest.raises(ValueError, match=sentence):
            metrics.evaluate_limited_negatives(groups(0), groups(1), (0.03, fpr))
    with pytest.raises(ValueError, match="fprs must hold at least one rate, got none"):
        metrics.evaluate_limited_negatives(groups(0), groups(1), ())
