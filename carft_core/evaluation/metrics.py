"""Metrics of predictions: pure functions of (logits, labels), and of context distributions.

Everything is computed in float64. Logits may hold -inf for classes that cannot occur.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from carft_sweep.carft_core.errors import NonFinite

ECE_BINS = 15


def on_float64_device(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return tensors on a device with float64, which MPS (the GPU of a Mac) lacks."""
    return tuple(tensor.cpu() if tensor.device.type == "mps" else tensor for tensor in tensors)


def top1(logits: Tensor, labels: Tensor) -> float:
    """Return the fraction of items whose greatest logit is their label's; of equal logits the
    first.

    `logits` [N, C], `labels` [N] int64. Raises ValueError for no items or shapes that do not fit,
    NonFinite for logits that are NaN or +inf; so do the functions below.
    """
    logits = _checked(logits, labels)
    return float((logits.argmax(dim=1) == labels).double().mean())


def nll(logits: Tensor, labels: Tensor) -> float:
    """Return the mean of -log p(label), in nats."""
    return float(F.nll_loss(F.log_softmax(_checked(logits, labels), dim=1), labels))


def ece(logits: Tensor, labels: Tensor, bins: int = ECE_BINS) -> float:
    """Return the expected calibration error: the mean over items of |accuracy - confidence| of
    their bin.

    Confidence is the greatest probability. The bins are of equal width over the whole split, the
    i-th is (i / bins, (i + 1) / bins]. Source: Guo et al. 2017, "On Calibration of Modern Neural
    Networks", equation 3.
    """
    # Not by a name of its own: of a large split each [N, C] in float64 counts in memory.
    confidence, prediction = F.softmax(_checked(logits, labels), dim=1).max(dim=1)
    inner_edges = torch.arange(1, bins, dtype=torch.float64, device=logits.device) / bins
    bin_of = torch.bucketize(confidence, inner_edges, right=False)
    surplus = (prediction == labels).double() - confidence
    per_bin = torch.zeros(bins, dtype=torch.float64, device=logits.device)
    return float(per_bin.index_add(0, bin_of, surplus).abs().sum() / len(labels))


def brier(logits: Tensor, labels: Tensor) -> float:
    """Return the mean over items of the sum over classes of (p - [class is the label])², in [0, 2].

    Source: Brier 1950, the original form for several classes.
    """
    p = F.softmax(_checked(logits, labels), dim=1)
    p_label = p.gather(1, labels[:, None])[:, 0]
    return float((p.square().sum(dim=1) - 2 * p_label + 1).mean())


def mean_per_class_top1(logits: Tensor, labels: Tensor) -> float:
    """Return the mean, over the classes that occur, of the fraction predicted right."""
    hit = (_checked(logits, labels).argmax(dim=1) == labels).double()
    return float(_group_means(hit, labels).mean())


def macro_f1(logits: Tensor, labels: Tensor) -> float:
    """Return the mean over the classes that occur of F1 = 2 TP / (2 TP + FP + FN). A class without
    items in `labels` is left out, even if predicted, as in WILDS' `F1-macro_all` of iWildCam
    (`wilds.common.metrics.all_metrics.F1`)."""
    logits = _checked(logits, labels)
    prediction, classes = logits.argmax(dim=1), logits.shape[1]
    hits = labels[prediction == labels].bincount(minlength=classes).double()
    labelled = labels.bincount(minlength=classes).double()
    predicted = prediction.bincount(minlength=classes).double()
    occurs = labelled > 0
    return float((2 * hits[occurs] / (labelled + predicted)[occurs]).mean())


def mean_group_top1(logits: Tensor, labels: Tensor, groups: Sequence[str]) -> float:
    """Return the mean over groups of each group's top-1; `groups` [N] names the group of each item.

    An item with an empty name belongs to no group. Over a validation set of several domains it is
    DomainBed's training-domain validation accuracy. Raises ValueError also where no item has a
    group, as `worst_group_top1` does.
    """
    return float(_by_group(logits, labels, groups).mean())


def worst_group_top1(logits: Tensor, labels: Tensor, groups: Sequence[str]) -> float:
    """Return the least top-1 of a group; `groups` [N] names the group of each item, empty for none.
    Over regions this is WILDS' `acc_worst_region`, which leaves out the region Other."""
    return float(_by_group(logits, labels, groups).min())


def _by_group(logits: Tensor, labels: Tensor, groups: Sequence[str]) -> Tensor:
    """Return the top-1 of each group, without the items that belong to no group."""
    hit = (_checked(logits, labels).argmax(dim=1) == labels).double()
    if len(groups) != len(hit):
        raise ValueError(f"{len(groups)} groups do not fit {len(hit)} items")
    number = {name: index for index, name in enumerate(dict.fromkeys(filter(None, groups)))}
    if not number:
        raise ValueError("no item belongs to a group")
    inside = torch.tensor([bool(name) for name in groups], device=hit.device)
    group = torch.tensor([number[name] for name in groups if name], device=hit.device)
    return _group_means(hit[inside], group)


def _group_means(values: Tensor, group: Tensor) -> Tensor:
    """Return the mean of `values` [N] in each group that occurs in `group` [N]."""
    groups, inverse, counts = group.unique(return_inverse=True, return_counts=True)
    means: Tensor = values.new_zeros(len(groups)).index_add(0, inverse, values) / counts
    return means


def entropy(log_probs: Tensor) -> float:
    """Return the mean entropy of distributions given as log probabilities [N, K], in nats."""
    _check_items(log_probs)
    return float(torch.special.entr(log_probs.double().exp()).sum(dim=1).mean())


def kl_divergence(log_p: Tensor, log_q: Tensor) -> float:
    """Return the mean of KL(p || q) of pairs of distributions as log probabilities [N, K], in nats.

    Where p is 0 nothing is added; where only q is 0 the divergence is infinite.
    """
    _check_items(log_p)
    if log_p.shape != log_q.shape:
        raise ValueError(f"p has shape {tuple(log_p.shape)} and q {tuple(log_q.shape)}")
    log_p, log_q = log_p.double(), log_q.double()
    p = log_p.exp()
    terms = torch.where(p == 0, 0.0, p * (log_p - log_q))
    # Never negative in exact arithmetic; rounding alone could make it so.
    return max(float(terms.sum(dim=1).mean()), 0.0)


def _checked(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the logits in float64. Raises ValueError or NonFinite as `top1` says."""
    _check_items(logits)
    if labels.shape != logits.shape[:1]:
        raise ValueError(f"logits {tuple(logits.shape)} do not fit labels {tuple(labels.shape)}")
    if bool(torch.isnan(logits).any() | torch.isposinf(logits).any()):
        raise NonFinite("the logits are not finite: some are NaN or +inf")
    return logits.double()


def _check_items(values: Tensor) -> None:
    if values.ndim != 2 or len(values) == 0:
        raise ValueError(f"expected at least one row of values [N, C], got {tuple(values.shape)}")
