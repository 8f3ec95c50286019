"""The trainers of microsoft/EdgeML (`edgeml_pytorch.trainer`), to be had by a change of one import.

`from drocc_ext.compat.edgeml import DROCCTrainer, DROCCLFTrainer, cal_precision_recall`: the
published constructor, methods, defaults, printed lines and, for DROCC, the same numbers from the
same seed. Kept on purpose: noise from torch's global generator on the CPU, the starting noise not
projected, a projection after every tenth step only (every fifth for DROCC-LF) and so none after the
last unless it is one of those, BatchNorm in training mode during the search and for DROCC-LF's
scores too, separate forwards of clean and adversarial rows, selection of the best epoch by the
loader given for it (choose it by other data than what you report), and `trainer.model`, which after
`train` is a copy of the best model and not the module given.

What differs stands in a table in docs/migrating.md.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from sklearn.metrics import f1_score, roc_auc_score
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from drocc_ext.compat import _search
from drocc_ext.compat._trainer import Array, Loader, PublishedTrainer, Schedule
from drocc_ext.search.mlp.match import is_plain

__all__ = ["DROCCLFTrainer", "DROCCTrainer", "cal_precision_recall"]


class DROCCTrainer(PublishedTrainer):
    """DROCC (Algorithm 1) with the published signatures; see the module for what differs."""

    def train(
        self,
        train_loader: Loader,
        val_loader: Loader,
        learning_rate: float,
        lr_scheduler: Schedule,
        total_epochs: int,
        only_ce_epochs: int = 50,
        ascent_step_size: float = 0.001,
        ascent_num_steps: int = 50,
        metric: str = "AUC",
    ) -> None:
        """Train, print a line per epoch, and make `model` a copy of the best epoch's.

        Args:
            train_loader: Batches (rows `[B, *]`, labels `[B]` or `[B, 1]`, ...); 1 = normal,
                0 = negative. Adversarial points are sought around the normal rows.
            val_loader: The same kind, both labels present, to select the epoch by.
            learning_rate: Passed to lr_scheduler.
            lr_scheduler: Called before every epoch, with epoch, total_epochs, only_ce_epochs,
                learning_rate and optimizer.
            total_epochs: Number of epochs.
            only_ce_epochs: First epochs, without the adversarial loss.
            ascent_step_size: Length of a step, in units of the data.
            ascent_num_steps: Steps of the search.
            metric: "AUC" or "F1", see `test`.

        Raises:
            TypeError: If a setting has the wrong type.
            ValueError: If a setting is out of range, a loader is empty, or labels are not 0 or 1.
        """
        _check_metric("DROCCTrainer.train", metric)
        self._set_ascent(ascent_step_size, ascent_num_steps)
        best_score, best_model = -np.inf, None
        for epoch in range(self._epochs(total_epochs)):
            lr_scheduler(epoch, total_epochs, only_ce_epochs, learning_rate, self.optimizer)
            ce_loss, adv_loss = self._train_epoch(train_loader, adversarial=epoch >= only_ce_epochs)
            score = self.test(val_loader, metric)
            if score > best_score:
                best_score, best_model = score, copy.deepcopy(self.model)
            print(f"Epoch: {epoch}, CE Loss: {ce_loss}, AdvLoss: {adv_loss}, {metric}: {score}")
        self.model = self.model if best_model is None else best_model
        print(f"\nBest test {metric}: {best_score}")

    def test(self, test_loader: Loader, metric: str) -> float:
        """Score labelled rows with the model in eval mode, where it then stays.

        Args:
            test_loader: As `train`'s val_loader.
            metric: "AUC", or "F1" with the normal class as positive and the 20 % lowest scores
                called anomalous (`metrics.f1_published`, which tells its ceiling).

        Returns:
            The metric, in [0, 1]; NaN, with a warning, where a score is not finite or, for AUC,
            one class is missing.

        Raises:
            ValueError: For another metric, labels other than 0 and 1, or no rows.
        """
        _check_metric("DROCCTrainer.test", metric)
        self.model.eval()
        labels, scores = self._scores(test_loader, probability=False)
        if not np.isfinite(scores).all():
            return float("nan")
        if metric == "AUC":
            return float(roc_auc_score(labels, scores))
        return float(f1_score(labels, (scores >= np.percentile(scores, 20)).astype(float)))

    def one_class_adv_loss(self, x_train_data: Tensor) -> Tensor:
        """Search around normal rows and return the loss of what is found, at the anomalous label.

        Args:
            x_train_data: Rows, `[B, *]`, on the model's device.

        Returns:
            Mean cross-entropy, 0-dimensional, with gradient history; 0 for an empty batch.
        """
        rows = self._to_model(x_train_data)
        if rows.shape[0] == 0:
            return torch.zeros((), device=rows.device, dtype=rows.dtype)
        with self._mode_for(rows):
            x_adv = _search.l2_search(
                self.model,
                rows,
                radius=float(self.radius),
                gamma=float(self.gamma),
                step_size=self.ascent_step_size,
                num_steps=self.ascent_num_steps,
                method=self.method,
            )
        return self._loss_at(x_adv)

    def _joint_losses(self, rows: Tensor, is_normal: Tensor | None) -> tuple[Tensor, Tensor] | None:
        if self._has_own_loss() or self.method != "auto" or self.ascent_num_steps == 0:
            return None
        # Wrappers that do something in a forward have to be called.
        if isinstance(self.model, DistributedDataParallel) or not is_plain(self.model):
            return None
        layers = _search.mlp_layers(self.model, rows, self.ascent_num_steps)
        if (
            layers is None
            or not _search.has_joint_losses(layers, rows)
            or rows.is_inference()
            or (is_normal is not None and not bool(is_normal.any()))
        ):
            return None
        return _search.l2_search_losses(
            layers,
            rows,
            is_normal,
            radius=float(self.radius),
            gamma=float(self.gamma),
            step_size=self.ascent_step_size,
            num_steps=self.ascent_num_steps,
        )

    def _adversarial_loss(self, rows: Tensor) -> Tensor:
        return self.one_class_adv_loss(rows)


class DROCCLFTrainer(PublishedTrainer):
    """DROCC-LF (Algorithm 2) with the published signatures; see the module for what differs."""

    def train(
        self,
        train_loader: Loader,
        val_loader: Loader,
        closeneg_val_loader: Loader,
        learning_rate: float,
        lr_scheduler: Schedule,
        total_epochs: int,
        only_ce_epochs: int = 50,
        ascent_step_size: float = 0.001,
        ascent_num_steps: int = 50,
    ) -> None:
        """Train, print three lines per epoch, and make `model` a copy of the best epoch's.

        The best epoch is that of largest recall at a false positive rate of 3 %.

        Args:
            train_loader: As in `DROCCTrainer.train`.
            val_loader: Normal rows and far negatives, to select the epoch by.
            closeneg_val_loader: Close negatives, label 0, to select the epoch by.
            learning_rate: Passed to lr_scheduler.
            lr_scheduler: As in `DROCCTrainer.train`.
            total_epochs: Number of epochs.
            only_ce_epochs: First epochs, without the adversarial loss.
            ascent_step_size: Length of a step, in units of the data.
            ascent_num_steps: Steps of the search.

        Raises:
            TypeError: If a setting has the wrong type.
            ValueError: If a setting is out of range, a loader is empty, or labels are not 0 or 1.
        """
        self._set_ascent(ascent_step_size, ascent_num_steps)
        best: list[float] = [-np.inf] * 4
        best_model = None
        for epoch in range(self._epochs(total_epochs)):
            lr_scheduler(epoch, total_epochs, only_ce_epochs, learning_rate, self.optimizer)
            ce_loss, adv_loss = self._train_epoch(train_loader, adversarial=epoch >= only_ce_epochs)
            _, positive, far = self.test(val_loader, get_auc=False)
            _, _, close = self.test(closeneg_val_loader, get_auc=False)
            at_3 = cal_precision_recall(positive, far, close, 0.03)
            at_5 = cal_precision_recall(positive, far, close, 0.05)
            if at_3[1] > best[1]:
                best, best_model = [*at_3, *at_5], copy.deepcopy(self.model)
            print(f"Epoch: {epoch}, CE Loss: {ce_loss}, AdvLoss: {adv_loss}")
            print(f"Precision @ FPR 3% : {at_3[0]}, Recall @ FPR 3%: {at_3[1]}")
            print(f"Precision @ FPR 5% : {at_5[0]}, Recall @ FPR 5%: {at_5[1]}")
        self.model = self.model if best_model is None else best_model
        print(f"\nBest test Precision @ FPR 3% : {best[0]}, Recall @ FPR 3%: {best[1]}")
        print(f"\nBest test Precision @ FPR 5% : {best[2]}, Recall @ FPR 5%: {best[3]}")

    def test(self, test_loader: Loader, get_auc: bool = True) -> tuple[float, Array, Array]:
        """Score labelled rows with the model in the mode that it is in, as published.

        In training mode BatchNorm therefore uses, and counts, the batches scored; call
        `model.eval()` before for scores that do not depend on them.

        Args:
            test_loader: Labelled batches.
            get_auc: Whether to compute the AUC.

        Returns:
            The AUC (-1 without get_auc), and the scores, probabilities of being normal in float64,
            of normal rows and of negatives.

        Raises:
            ValueError: For labels other than 0 and 1, or no rows.
        """
        labels, scores = self._scores(test_loader, probability=True)
        auc = -1.0
        if get_auc:
            auc = float(roc_auc_score(labels, scores)) if np.isfinite(scores).all() else np.nan
        return auc, scores[labels == 1], scores[labels == 0]

    def one_class_adv_loss(self, x_train_data: Tensor, gradients: Tensor) -> Tensor:
        """Search around normal rows and return the loss of what is found, at the anomalous label.

        Args:
            x_train_data: Rows, `[B, *]`, on the model's device.
            gradients: Shape of x_train_data: the gradient of the loss there, or its absolute value;
                how much a coordinate weighs in the metric. Factors of rows do not matter.

        Returns:
            Mean cross-entropy, 0-dimensional, with gradient history; 0 for an empty batch.
        """
        rows = self._to_model(x_train_data)
        if rows.shape[0] == 0:
            return torch.zeros((), device=rows.device, dtype=rows.dtype)
        with self._mode_for(rows):
            x_adv = _search.metric_search(
                self.model,
                rows,
                gradients,
                radius=float(self.radius),
                gamma=float(self.gamma),
                step_size=self.ascent_step_size,
                num_steps=self.ascent_num_steps,
            )
        return self._loss_at(x_adv)

    def _adversarial_loss(self, rows: Tensor) -> Tensor:
        if rows.shape[0] == 0:
            return self.one_class_adv_loss(rows, rows)
        with self._mode_for(rows):
            leaf = rows.detach().requires_grad_()
            gradients = _search.loss_gradient(self.model, leaf, 1)
        return self.one_class_adv_loss(rows, gradients)


def cal_precision_recall(
    positive_scores: Array, far_neg_scores: Array, close_neg_scores: Array, fpr: float
) -> tuple[float, float]:
    """Precision and recall at a false positive rate, as the published script computes them.

    The threshold is the negatives' score at rank `int((1 - fpr) * n)` in ascending order, and a row
    is accepted above it. `metrics.recall_at_fpr` respects the rate under ties too.

    Args:
        positive_scores: Scores of normal rows, `[P]`, P >= 1, higher = more normal.
        far_neg_scores: Scores of far negatives, `[N]`.
        close_neg_scores: Scores of close negatives, `[M]`, N + M = n >= 1.
        fpr: False positive rate, 0 < fpr <= 1.

    Returns:
        Precision, with `int(fpr * n)` taken for the number of false positives (NaN where nothing is
        accepted), and recall; NaN both where a score is not finite.

    Raises:
        ValueError: If there are no positives or no negatives, or fpr is out of range.
    """
    negative = np.sort(np.concatenate([far_neg_scores, close_neg_scores]))
    if len(positive_scores) == 0 or len(negative) == 0:
        raise ValueError(
            "cal_precision_recall: there must be positive and negative scores, got "
            f"{len(positive_scores)} and {len(negative)}"
        )
    if not 0 < fpr <= 1:
        raise ValueError(f"cal_precision_recall: fpr must be > 0 and <= 1, got {fpr}")
    if not (np.isfinite(negative).all() and np.isfinite(positive_scores).all()):
        return float("nan"), float("nan")
    threshold = negative[int((1 - fpr) * len(negative))]
    accepted = int(np.count_nonzero(positive_scores > threshold))
    called_normal = accepted + int(fpr * len(negative))
    precision = accepted / called_normal if called_normal else float("nan")
    return precision, accepted / len(positive_scores)


def _check_metric(caller: str, metric: str) -> None:
    if metric not in ("AUC", "F1"):
        raise ValueError(f"{caller}: metric must be 'AUC' or 'F1', got {metric!r}")
