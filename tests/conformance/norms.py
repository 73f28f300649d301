"""Normalisation: a tensor less its mean, over its deviation, along some of its axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tests.conformance.page import OutOfScope, Page, Value, number
from tests.conformance.reductions import mean, over
from tests.conformance.shapes import reshape

Index = tuple[str, ...]


def centred(w: Page, x: Value, dims: Sequence[int], eps: float) -> tuple[Value, Value, Value]:
    """(x - m) / sqrt(v + eps), with m and 1 / sqrt(v + eps), axes kept."""
    m = mean(w, x, dims, True)
    v = over(w, x, dims, True, lambda r, i, e: f"mean[{r}] ({e} - {m.wide(i)})^2")
    s = w(v.shape, lambda i: f"1 / sqrt({v[i]} + {number(eps)})")
    return w(x.shape, lambda i: f"({x[i]} - {m.wide(i)}) * {s.wide(i)}"), m, s


def scaled(w: Page, y: Value, weight: Any, bias: Any, place: Callable[[Index], Index]) -> Value:
    if weight is None and bias is None:
        return y
    a = (lambda i: f"{weight[place(i)]} * ") if weight is not None else lambda i: ""
    b = (lambda i: f" + {bias[place(i)]}") if bias is not None else lambda i: ""
    return w(y.shape, lambda i: f"{a(i)}{y[i]}{b(i)}")


def layer_norm(
    w: Page, x: Value, shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Value:
    n = len(shape)
    y, _, _ = centred(w, x, range(x.rank - n, x.rank), eps)
    return scaled(w, y, weight, bias, lambda i: i[len(i) - n :])


def native_layer_norm(w: Page, x: Value, shape: Sequence[int], weight: Any, bias: Any, eps: float) -> Any:
    n = len(shape)
    y, m, s = centred(w, x, range(x.rank - n, x.rank), eps)
    return scaled(w, y, weight, bias, lambda i: i[len(i) - n :]), m, s


def rms_norm(w: Page, x: Value, shape: Sequence[int], weight: Any = None, eps: float | None = None) -> Value:
    n, e = len(shape), 2.220446049250313e-16 if eps is None else eps
    s = over(w, x, range(x.rank - n, x.rank), True, lambda r, i, v: f"mean[{r}] {v}^2")
    y = w(x.shape, lambda i: f"{x[i]} / sqrt({s.wide(i)} + {number(e)})")
    return scaled(w, y, weight, None, lambda i: i[len(i) - n :])


def group_norm(w: Page, x: Value, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Value:
    return grouped(w, x, groups, weight, bias, eps)[0]


def grouped(w: Page, x: Value, groups: int, weight: Any, bias: Any, eps: float) -> Any:
    n, c, *rest = x.shape
    g = reshape(w, x, (n, groups, c // groups, *rest))
    y, m, s = centred(w, g, range(2, g.rank), eps)
    y = scaled(w, reshape(w, y, x.shape), weight, bias, lambda i: (i[1],))
    return y, reshape(w, m, (n, groups)), reshape(w, s, (n, groups))


def native_group_norm(
    w: Page, x: Value, weight: Any, bias: Any, n: int, c: int, hw: int, groups: int, eps: float
) -> Any:
    return grouped(w, x, groups, weight, bias, eps)


def by_stored(w: Page, x: Value, m: Value, v: Value, eps: float) -> Value:
    return w(x.shape, lambda i: f"({x[i]} - {m[i[1]]}) / sqrt({v[i[1]]} + {number(eps)})")


def batch_norm(
    w: Page,
    x: Value,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Value:
    if x.rank < 2:
        return w(x.shape, lambda i: x[i])
    axes = [0, *range(2, x.rank)]
    y = centred(w, x, axes, eps)[0] if training else by_stored(w, x, running_mean, running_var, eps)
    return scaled(w, y, weight, bias, lambda i: (i[1],))


def native_batch_norm(
    w: Page,
    x: Value,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    training: bool,
    momentum: float,
    eps: float,
) -> Any:
    if x.rank < 2 or not x.size:
        raise OutOfScope("an empty batch")
    if training:
        y, m, s = centred(w, x, [0, *range(2, x.rank)], eps)
        kept = [reshape(w, v, (x.shape[1],)) for v in (m, s)]
        return scaled(w, y, weight, bias, lambda i: (i[1],)), *kept
    y = by_stored(w, x, running_mean, running_var, eps)
    return scaled(w, y, weight, bias, lambda i: (i[1],)), w((0,), lambda i: "0"), w((0,), lambda i: "0")


def native_batch_norm_legit(w: Page, x: Value, weight: Any, bias: Any, *rest: Any) -> Any:
    return native_batch_norm(w, x, weight, bias, *((None, None) if len(rest) == 3 else ()), *rest)


def instance_norm(
    w: Page,
    x: Value,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Value:
    y = centred(w, x, range(2, x.rank), eps)[0] if use_input_stats else by_stored(w, x, running_mean, running_var, eps)
    return scaled(w, y, weight, bias, lambda i: (i[1],))


def local_response_norm(w: Page, x: Value, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Value:
    if not x.size:
        return w(x.shape, lambda i: "0")

    def body(i: Index) -> str:
        near = x.outside((i[0], f"{i[1]} + r - {size // 2}", *i[2:]))
        return f"{x[i]} / ({number(k)} + {number(alpha)} * (sum[r < {size}] {near}^2) / {size})^{number(beta)}"

    return w(x.shape, body)


ROWS: dict[str, Callable[..., Any]] = {
    "nn.functional.layer_norm": layer_norm,
    "native_layer_norm": native_layer_norm,
    "nn.functional.rms_norm": rms_norm,
    "nn.functional.group_norm": group_norm,
    "native_group_norm": native_group_norm,
    "nn.functional.batch_norm": batch_norm,
    "native_batch_norm": native_batch_norm,
    "_native_batch_norm_legit": native_batch_norm_legit,
    "nn.functional.instance_norm": instance_norm,
    "nn.functional.local_response_norm": local_response_norm,
}
