"""Reductions against PyTorch's: over the last axis by functions, over others by the language."""

import torch

from tests.library.rows import Row, far, positive

LAST = {"k": 1}

LIBRARY = {
    "var": Row("x[n, k]", "var(x)", lambda x: torch.var(x, -1), {"n": 1, "k": 2}),
    "std": Row("x[n, k]", "std(x, correction = 0)", lambda x: torch.std(x, -1, correction=0), {"n": 1, "k": 2}),
    "p_norm": Row("x[n, k]", "p_norm(x)", lambda x: torch.linalg.vector_norm(x, 2, -1)),
    "count_nonzero": Row("x[n, k]", "float(count_nonzero(x))", lambda x: (x != 0).double().sum(-1) + 0 * x.sum(-1)),
    "cumulative_max": Row("x[n, k]", "cumulative_max(x)", lambda x: torch.cummax(x, -1).values),
    "cumulative_min": Row("x[n, k]", "cumulative_min(x)", lambda x: torch.cummin(x, -1).values),
    "cumulative_logsumexp": Row("x[n, k]", "cumulative_logsumexp(x)", lambda x: torch.logcumsumexp(x, -1)),
    "cov": Row("x[n, k]", "cov(x)", lambda x: torch.cov(x.T).reshape(x.shape[1], -1), {"n": 2, "k": 1}),
    "corrcoef": Row("x[n, k]", "corrcoef(x)", lambda x: torch.corrcoef(x.T).reshape(x.shape[1], -1), {"n": 3, "k": 1}),
    "trapezoid": Row("x[n, k]", "trapezoid(x, dx = 0.5)", lambda x: torch.trapezoid(x, dx=0.5, dim=-1), LAST),
}

RECURRENT = {
    "cumulative_sum": Row("x[n, k]", "cumulative_sum(x)", lambda x: torch.cumsum(x, -1)),
    "cumulative_product": Row("x[n, k]", "cumulative_product(x)", lambda x: torch.cumprod(x, -1)),
}

SETTINGS = RECURRENT | {
    f"p_norm {p}": Row("x[n, k]", f"p_norm(x, p = {p})", lambda x, p=p: torch.linalg.vector_norm(x, float(p), -1),
                       {"k": 1}, {"x": far})
    for p in ("0", "1", "1.5", "3", "inf")
}  # fmt: skip

MIDDLE = {"n": 1, "k": 1, "m": 1}


def over(call: str, oracle, least=None, draw=None, smooth=True) -> Row:
    """Over any axes of x[n, k, m], written with indices."""
    return Row("x[n, k, m]", call, oracle, least or {}, {"x": draw} if draw else {}, smooth=smooth)


# `y = …` needs its axes: the left side is part of the row
WRITTEN = {
    "sum": over("z[n, m]: sum[k] x[n, k, m]", lambda x: x.sum(1)),
    "sum of two": over("z[k]: sum[n, m] x[n, k, m]", lambda x: x.sum((0, 2))),
    "sum of all": over("z: sum(x)", lambda x: x.sum()),
    "mean": over("z[n, m]: mean[k] x[n, k, m]", lambda x: x.mean(1), MIDDLE),
    "mean of all": over("z: mean(x)", lambda x: x.mean(), MIDDLE),
    "prod": over("z[n, m]: prod[k] x[n, k, m]", lambda x: x.prod(1)),
    "max": over("z[n, m]: max[k] x[n, k, m]", lambda x: x.amax(1), MIDDLE),
    "min": over("z[n, m]: min[k] x[n, k, m]", lambda x: x.amin(1), MIDDLE),
    "max of two": over("z[n]: max[k, m] x[n, k, m]", lambda x: x.amax((1, 2)), MIDDLE),
    "max of all": over("z: max(x)", lambda x: x.amax(), MIDDLE),
    "argmax": over("z[n, m]: float(argmax[k] x[n, k, m])", lambda x: x.argmax(1).double() + 0 * x.sum(1), MIDDLE),
    "argmin": over("z[n, m]: float(argmin[k] x[n, k, m])", lambda x: x.argmin(1).double() + 0 * x.sum(1), MIDDLE),
    "any": over("z[n, m]: float(any[k] (x[n, k, m] > 0))", lambda x: (x > 0).any(1).double() + 0 * x.sum(1)),
    "all": over("z[n, m]: float(all[k] (x[n, k, m] > 0))", lambda x: (x > 0).all(1).double() + 0 * x.sum(1)),
    "logsumexp": over("z[k]: log(sum[n, m] exp(x[n, k, m]))", lambda x: torch.logsumexp(x, (0, 2)), MIDDLE),
    "norm": over("z[m]: sqrt(sum[n, k] x[n, k, m]^2)", lambda x: torch.linalg.vector_norm(x, 2, (0, 1))),
    "cumulative sum": over("z[n < n, k < k, m < m]: z[n, k - 1, m; 0] + x[n, k, m]", lambda x: x.cumsum(1)),
    "from the end": over("z[n < n, k < k, m < m]: z[n, k, m + 1; 1] * x[n, k, m]",
                         lambda x: x.flip(2).cumprod(2).flip(2), draw=positive),
}  # fmt: skip
