"""Losses against PyTorch's, one number for each example."""

import torch
from torch.nn import functional as F

from tests.library.rows import Row, distribution, positive, share, signs, two

LABELLED = "x[n, k]; label[n] : index k"
PAIR = "x[n, k]; t[n, k]"
ONE = {"k": 1}
NONE = "none"


def nll(logp, label):
    return F.nll_loss(logp, label, reduction=NONE)


def masked(x, label):
    return F.cross_entropy(x, torch.where(label == 0, -100, label), reduction=NONE)


def focal(z, t, gamma=2, alpha=0.25):
    """As torchvision's sigmoid_focal_loss."""
    p, ce = torch.sigmoid(z), F.binary_cross_entropy_with_logits(z, t, reduction=NONE)
    return (alpha * t + (1 - alpha) * (1 - t)) * (1 - (p * t + (1 - p) * (1 - t))) ** gamma * ce


def info_nce(a, b):
    z = F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T / 0.1
    return F.cross_entropy(z, torch.arange(len(a)), reduction=NONE)


def contrastive(a, b, same):
    d = torch.linalg.vector_norm(a - b, dim=-1)
    return same * d**2 + (1 - same) * F.relu(1 - d) ** 2


def ctc(z, label, frames, count):
    logp = F.log_softmax(z, -1).transpose(0, 1)
    return F.ctc_loss(logp, label + 1, frames + 2, count, reduction=NONE)


LIBRARY = {
    "cross_entropy": Row(LABELLED, "cross_entropy(x, label)",
                         lambda x, label: F.cross_entropy(x, label, reduction=NONE), ONE),
    "soft_cross_entropy": Row(PAIR, "soft_cross_entropy(x, t)",
                              lambda x, t: F.cross_entropy(x, t, reduction=NONE), ONE, {"t": distribution}, ("x",)),
    "smooth_cross_entropy": Row(LABELLED, "smooth_cross_entropy(x, label, smoothing = 0.3)",
                                lambda x, label: F.cross_entropy(x, label, label_smoothing=0.3, reduction=NONE), ONE),
    "weighted_cross_entropy": Row("x[n, k]; label[n] : index k; w[k]",
                                  "weighted_cross_entropy(x, label, w, smoothing = 0.2)",
                                  lambda x, label, w: F.cross_entropy(x, label, w, label_smoothing=0.2, reduction=NONE),
                                  ONE, {"w": positive}, ("x",)),
    "masked_cross_entropy": Row(LABELLED, "masked_cross_entropy(x, label, ignore = 0)", masked, ONE),
    "masked_mean": Row("x[n]; t[n]", "masked_mean(x, t)", lambda x, t: (x * t).sum() / t.sum(),
                       {"n": 1}, {"t": positive}),
    "nll": Row(LABELLED, "nll(x, label)", nll, ONE),
    "binary_cross_entropy": two("binary_cross_entropy(x, t)",
                                lambda x, t: F.binary_cross_entropy_with_logits(x, t, reduction=NONE), t=share),
    "weighted_binary_cross_entropy": Row(
        "x[n, k]; t[n, k]; w[n, k]", "weighted_binary_cross_entropy(x, t, w)",
        lambda x, t, w: F.binary_cross_entropy_with_logits(x, t, pos_weight=w, reduction=NONE),
        draw={"t": share, "w": positive}, wrt=("x",)),
    "probability_cross_entropy": two("probability_cross_entropy(x, t)",
                                     lambda x, t: F.binary_cross_entropy(x, t, reduction=NONE),
                                     x=share, t=share, wrt=("x",)),
    "mean_squared_error": Row(PAIR, "mean_squared_error(x, t)",
                              lambda x, t: F.mse_loss(x, t, reduction=NONE).mean(-1), ONE),
    "mean_absolute_error": Row(PAIR, "mean_absolute_error(x, t)",
                               lambda x, t: F.l1_loss(x, t, reduction=NONE).mean(-1), ONE),
    "smooth_l1": two("smooth_l1(x, t, beta = 0.5)", lambda x, t: F.smooth_l1_loss(x, t, beta=0.5,
                                                                                 reduction=NONE)),
    "huber": two("huber(x, t, delta = 0.5)", lambda x, t: F.huber_loss(x, t, delta=0.5, reduction=NONE)),
    "log_cosh": two("log_cosh(x, t)", lambda x, t: torch.log(torch.cosh(x - t))),
    "quantile_loss": two("quantile_loss(x, t, q = 0.8)",
                         lambda x, t: torch.maximum(0.8 * (t - x), -0.2 * (t - x))),
    "gaussian_nll": Row("x[n, k]; t[n, k]; v[n, k]", "gaussian_nll(x, t, v)",
                        lambda x, t, v: F.gaussian_nll_loss(x, t, v, reduction=NONE), draw={"v": positive}),
    "poisson_nll": two("poisson_nll(x, t)", lambda x, t: F.poisson_nll_loss(x, t, reduction=NONE), t=positive),
    "kl_divergence": Row(PAIR, "kl_divergence(x, t)", lambda x, t: F.kl_div(x, t, reduction=NONE).sum(-1), ONE,
                         {"t": positive}),
    "kl_to_normal": Row(PAIR, "kl_to_normal(x, t)", lambda x, t: (t.exp() + x**2 - 1 - t).sum(-1) / 2),
    "hinge": two("hinge(x, t)", lambda x, t: F.relu(1 - t * x), t=signs),
    "squared_hinge": two("squared_hinge(x, t)", lambda x, t: F.relu(1 - t * x) ** 2, t=signs),
    "soft_margin": two("soft_margin(x, t)", lambda x, t: F.soft_margin_loss(x, t, reduction=NONE),
                       t=signs, wrt=("x",)),
    "hinge_embedding": two("hinge_embedding(x, t)", lambda x, t: F.hinge_embedding_loss(x, t, reduction=NONE),
                           t=signs, wrt=("x",)),
    "margin_ranking": Row("a[n]; b[n]; t[n]", "margin_ranking(a, b, t, margin = 0.2)",
                          lambda a, b, t: F.margin_ranking_loss(a, b, t, margin=0.2, reduction=NONE),
                          draw={"t": signs}, wrt=("a", "b")),
    "multi_margin": Row(LABELLED, "multi_margin(x, label)",
                        lambda x, label: F.multi_margin_loss(x, label, reduction=NONE), {"n": 1, "k": 1}, smooth=False),
    "multilabel_soft_margin": Row(PAIR, "multilabel_soft_margin(x, t)",
                                  lambda x, t: F.multilabel_soft_margin_loss(x, t, reduction=NONE), ONE,
                                  {"t": share}, ("x",)),
    "cosine_similarity": Row(PAIR, "cosine_similarity(x, t)", lambda x, t: F.cosine_similarity(x, t, dim=-1), ONE),
    "pairwise_distance": Row(PAIR, "pairwise_distance(x, t)", F.pairwise_distance, ONE),
    "cdist": Row("x[n, k]; t[m, k]", "cdist(x, t)", torch.cdist, {"n": 1, "m": 1, "k": 2}, smooth=False),
    "cosine_embedding": Row("x[n, k]; t[n, k]; s[n]", "cosine_embedding(x, t, s, margin = 0.1)",
                            lambda x, t, s: F.cosine_embedding_loss(x, t, s, margin=0.1, reduction=NONE),
                            {"k": 2}, {"s": signs}, ("x", "t")),
    "contrastive": Row("x[n, k]; t[n, k]; s[n]", "contrastive(x, t, s)", contrastive, ONE, {"s": share}),
    "triplet": Row("a[n, k]; b[n, k]; c[n, k]", "triplet(a, b, c)",
                   lambda a, b, c: F.triplet_margin_loss(a, b, c, reduction=NONE), ONE),
    "info_nce": Row(PAIR, "info_nce(x, t)", info_nce, {"n": 1, "k": 2}),
    "focal": two("focal(x, t)", focal, t=share),
    "dice": Row(PAIR, "dice(x, t)", lambda x, t: 1 - (2 * (x * t).sum(-1) + 1) / (x.sum(-1) + t.sum(-1) + 1),
                draw={"x": share, "t": share}),
    # classes 0 to 4, of which 0 is the blank; 2 to 6 of 7 frames; up to 2 of 3 labels
    "ctc": Row("x[n, 7, 5]; label[n, 3] : index 4; frames[n] : index 6; count[n] : index 2",
               "ctc(log_softmax(x), label + 1, frames + 2, count)", ctc, {"n": 1}, smooth=False),
}  # fmt: skip

SETTINGS = {
    "multi_margin 2": Row(LABELLED, "multi_margin(x, label, margin = 0.5, p = 2)",
                          lambda x, label: F.multi_margin_loss(x, label, p=2, margin=0.5, reduction=NONE),
                          {"n": 1, "k": 1}, smooth=False),
    "triplet 1": Row("a[n, k]; b[n, k]; c[n, k]", "triplet(a, b, c, p = 1)",
                     lambda a, b, c: F.triplet_margin_loss(a, b, c, p=1, reduction=NONE), ONE),
}  # fmt: skip
