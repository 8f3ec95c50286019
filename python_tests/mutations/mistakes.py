"""The mistakes: where, what the line becomes, and the tests that have to notice."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mistake:
    """One change of one file.

    Attributes:
        what: The mistake in a few words.
        path: The file, from the repository's root.
        old: Text that occurs there exactly once.
        new: What becomes of it.
        tests: Arguments for pytest: files of `python_tests` and a choice among their tests.
    """

    what: str
    path: str
    old: str
    new: str
    tests: tuple[str, ...]


def _in(path: str, *rows: tuple[str, str, str, str]) -> list[Mistake]:
    """Rows (what, old, new, tests) of one file; ` -k ` is between files and a choice of tests."""
    found = []
    for what, old, new, tests in rows:
        files, _, chosen = tests.partition(" -k ")
        arguments = [f"python_tests/test_{name}.py" for name in files.split()]
        found.append(Mistake(what, path, old, new, (*arguments, *(["-k", chosen] * bool(chosen)))))
    return found


PYTHON = [
    *_in(
        "drocc_ext/ops/eager/l2_shell.py",
        (
            "the outer radius is the inner one",
            "target = inner * torch.where(far, factor, ones)",
            "target = inner * ones",
            "l2_shell -k test_values and eager and 3x37",
        ),
        (
            "the origin stays where it is",
            "near = zero | (norm < inner * scale)",
            "near = norm < inner * scale",
            "l2_shell_edges -k origin and eager",
        ),
        (
            "a sign in the ascent's derivative",
            "tangent = upstream - unit * per_row(row_dot(unit, upstream), unit)",
            "tangent = upstream + unit * per_row(row_dot(unit, upstream), unit)",
            "ops_library -k without_kernels",
        ),
    ),
    *_in(
        "drocc_ext/ops/eager/influence.py",
        (
            "the mean over rows, not over coordinates",
            "safe / per_row(safe.flatten(1).mean(1), wide)",
            "safe / safe.mean(0, keepdim=True)",
            "influence -k test_values and eager and 3x37-float32",
        ),
    ),
    *_in(
        "drocc_ext/ops/eager/secular.py",
        (
            "a tolerance of single precision",
            "eps = torch.finfo(one.dtype).tiny, torch.finfo(one.dtype).eps",
            "eps = torch.finfo(one.dtype).tiny, torch.finfo(torch.float16).eps",
            "mahalanobis_shell -k tiny_multiplier or every_row and 2-120",
        ),
    ),
    *_in(
        "drocc_ext/search/search.py",
        (
            "no projection after the last step",
            "last = step == config.num_steps and config.project_last",
            "last = False",
            "search -k algorithm_1",
        ),
        (
            "projections one step late",
            "if step % config.project_every == 0 or last",
            "if (step - 1) % config.project_every == 0 or last",
            "search -k algorithm_1",
        ),
        (
            "the noise is not scaled",
            "device=x.device, scale=scale, generator",
            "device=x.device, generator",
            "search -k algorithm_1",
        ),
    ),
    *_in(
        "drocc_ext/training/loss.py",
        (
            "adversarial points have the normal label",
            "adv_logits, torch.zeros_like(adv_logits)",
            "adv_logits, torch.ones_like(adv_logits)",
            "training_loss -k formula",
        ),
        (
            "the search is around negatives too",
            "            x = x[is_normal]",
            "            pass",
            "training_loss -k labelled_negatives",
        ),
        (
            "validation counts for the next sigma",
            "self.tracker is not None and self.training:",
            "self.tracker is not None:",
            "training_influence -k evaluation",
        ),
    ),
    *_in(
        "drocc_ext/training/influence_tracker.py",
        (
            "rows that are not finite stay in the sum",
            "usable = rows.masked_fill(~finite.view(-1, *[1] * (rows.dim() - 1)), 0.0)",
            "usable = rows",
            "training_influence_edges -k finite_influence",
        ),
        (
            "the mean of the epoch before is not forgotten",
            "        self.influence_sum = self.row_count = None",
            "        pass",
            "training_influence -k epoch_before",
        ),
    ),
    *_in(
        "drocc_ext/training/checkpoint.py",
        (
            "a resumed fit has other random numbers",
            '        set_rng_state(state["rng"])\n',
            "",
            "training_checkpoint -k is_exact and loader",
        ),
        (
            "the best epoch is the worst",
            "value < best if lower else value > best",
            "value > best if lower else value < best",
            "training_selection -k best_epoch",
        ),
    ),
    *_in(
        "drocc_ext/training/step.py",
        (
            "a step that fails leaves its batch statistics",
            "                    buffer.copy_(before)",
            "                    pass",
            "training_fit -k not_finite",
        ),
        (
            "gradients are not clipped",
            "if self.clip_norm is not None:",
            "if False:",
            "training_fit -k clip_norm",
        ),
    ),
    *_in(
        "drocc_ext/training/trainer.py",
        (
            "the epoch's loss is a mean over batches",
            "old + value * x.shape[0] for old",
            "old + value for old",
            "training_fit -k epoch_loss",
        ),
    ),
    *_in(
        "drocc_ext/models/modules.py",
        (
            "a frozen model stays frozen",
            "    module.training = held.training",
            "    pass",
            "search_modes -k freeze_and_restore",
        ),
    ),
    *_in(
        "drocc_ext/models/persistence.py",
        (
            "a description is not compared with its checksum",
            'description.get("checksum") == checksum(description)',
            "True",
            "models_persistence",
        ),
    ),
    *_in(
        "drocc_ext/_files.py",
        (
            "a link is replaced by a file",
            "target = Path(os.path.realpath(path))",
            "target = Path(path)",
            "files",
        ),
    ),
    *_in(
        "drocc_ext/metrics.py",
        (
            "the bound on the false positive rate is excluded",
            "/ anomalies.size <= fpr)",
            "/ anomalies.size < fpr)",
            "metrics",
        ),
        (
            "the score of the first refused anomaly is accepted",
            "accepted[accepted > anomalies[allowed]]",
            "accepted[accepted >= anomalies[allowed]]",
            "metrics",
        ),
        (
            "F1 of one class is that of the other",
            "hits = np.count_nonzero(below & ~normal)",
            "hits = np.count_nonzero(below & normal)",
            "metrics",
        ),
    ),
    *_in(
        "drocc_ext/radius.py",
        (
            "a row is its own neighbour",
            "n_neighbors=k + 1",
            "n_neighbors=k",
            "radius",
        ),
    ),
    *_in(
        "drocc_ext/estimators/drocc.py",
        (
            "the threshold lies at the other end",
            "self.decision_scores_, 1 - self.contamination",
            "self.decision_scores_, self.contamination",
            "estimators -k thresholds_and_labels",
        ),
    ),
    *_in(
        "drocc_ext/estimators/_core.py",
        (
            "known anomalies are trained on as normal",
            "torch.zeros(len(negatives))",
            "torch.ones(len(negatives))",
            "estimators_negatives",
        ),
        (
            "a dropped column keeps its place",
            "(x[:, self.kept] - self.mean)",
            "(x[:, : len(self.kept)] - self.mean)",
            "estimators -k constant_columns",
        ),
    ),
    *_in(
        "drocc_ext/ops/triton/influence.py",
        (
            "the total instead of the mean",
            "factor = count * inverse",
            "factor = inverse",
            "triton_interpreter -k each_kind",
        ),
    ),
]
# Built into one library: each is in another operator, and its tests call that one only.
NATIVE = [
    *_in(
        "csrc/math/influence.h",
        (
            "the mean upstream is not taken off",
            "sign * slope * (row.upstream(i) - mean_upstream)",
            "sign * slope * row.upstream(i)",
            "influence -k gradcheck and native",
        ),
    ),
    *_in(
        "csrc/cpu/l2_shell_kernel.cpp",
        (
            "the last full vector counts lanes twice",
            "add(1, kept * load_lanes(h + count - kStep), kept * at(grad + count - kStep))",
            "add(1, load_lanes(h + count - kStep), at(grad + count - kStep))",
            "l2_shell -k test_values and native and 3x37",
        ),
    ),
    *_in(
        "csrc/math/secular.h",
        (
            "Newton's step has the wrong sign",
            "(value.f / value.q) * (sqrt(value.f) - 1)",
            "(value.f / value.q) * (1 - sqrt(value.f))",
            "mahalanobis_shell -k contrived and native",
        ),
    ),
    *_in(
        "csrc/math/gaussian.h",
        (
            "the sine's sign is lost",
            "(quarter & 2) != 0 ? -sine_size : sine_size",
            "sine_size",
            "search_noise",
        ),
    ),
    *_in(
        "csrc/math/hidden_loss.h",
        (
            "the slope of a unit that is off is one",
            "return active > 0 ? C(1) : active",
            "return active >= 0 ? C(1) : active",
            "mlp_loss -k losses_and_gradients",
        ),
    ),
    *_in(
        "csrc/math/hidden_search.h",
        (
            "the norm after a step misses the cross term",
            "step.square = apart + 2.0 * step.ascent * h_grad",
            "step.square = apart + step.ascent * h_grad",
            "search_methods -k hidden_is_autograd",
        ),
    ),
]
