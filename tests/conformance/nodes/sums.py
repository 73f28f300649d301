"""ONNX's reductions, normalisations, losses, products, and optimizers' updates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tests.conformance import contractions, norms
from tests.conformance.nodes.maps import each, quantize
from tests.conformance.nodes.places import Index, ints
from tests.conformance.page import NotExpressible, Page, Value, number, swap
from tests.conformance.reductions import normalize, over, softmax
from tests.conformance.shapes import copy, permute

# {r} the ranges reduced over, {e} the element
REDUCTIONS = {
    "ReduceL1": "sum[{r}] abs({e})",
    "ReduceL2": "sqrt(sum[{r}] {e}^2)",
    "ReduceLogSum": "log(sum[{r}] {e})",
    "ReduceLogSumExp": "log(sum[{r}] exp({e}))",
    "ReduceMax": "max[{r}] {e}",
    "ReduceMean": "mean[{r}] {e}",
    "ReduceMin": "min[{r}] {e}",
    "ReduceProd": "prod[{r}] {e}",
    "ReduceSum": "sum[{r}] {e}",
    "ReduceSumSquare": "sum[{r}] {e}^2",
}


def reduction(template: str) -> Callable[..., Any]:
    def row(
        w: Page, x: Value, axes: Any = None, keepdims: int = 1, noop_with_empty_axes: int = 0, **named: Any
    ) -> Value:
        dims = named.get("axes", ints(axes) if axes is not None else [])
        if not dims and noop_with_empty_axes:
            identity = {"sum[{r}] {e}^2": "{x}^2", "sum[{r}] abs({e})": "abs({x})", "sqrt(sum[{r}] {e}^2)": "abs({x})"}
            return each(w, {"log(sum[{r}] {e})": "log({x})", **identity}.get(template, "{x}"), x=x)
        if x.dtype == "bool":
            joined = {"max[{r}] {e}": "any[{r}] {e}", "min[{r}] {e}": "all[{r}] {e}"}[template]
            return over(w, x, dims or None, bool(keepdims), lambda r, i, e: joined.format(r=r, e=e), "bool")
        return over(w, x, dims or None, bool(keepdims), lambda r, i, e: template.format(r=r, e=e), x.dtype)

    return row


def running(kind: str) -> Callable[..., Any]:
    """Cumulative sums and products: recurrences, to later or to earlier places."""

    def row(w: Page, x: Value, axis: Value, exclusive: int = 0, reverse: int = 0) -> Value:
        d, start, sign = x.dim(ints(axis)[0]), *(("0", "+") if kind == "sum" else ("1", "*"))

        def body(i: Index) -> str:
            name, near = f"y{len(w.statements)}", f"{i[d]} {'+' if reverse else '-'} 1"
            before = f"{name}[{', '.join(swap(i, d, near))}; {start}]"
            own = x.outside(swap(i, d, near), start) if exclusive else x[i]
            return f"{before} {sign} {own}"

        return w(x.shape, body, dtype=x.dtype)

    return row


# products
def gemm(
    w: Page, a: Value, b: Value, c: Any = None, alpha: float = 1, beta: float = 1, transA: int = 0, transB: int = 0
) -> Value:
    m, k = a.shape[::-1] if transA else a.shape
    n = b.shape[0] if transB else b.shape[1]

    def body(i: Index) -> str:
        left = a["k", i[0]] if transA else a[i[0], "k"]
        right = b[i[1], "k"] if transB else b["k", i[1]]
        product = f"{number(alpha)} * (sum[k < {k}] {left} * {right})"
        return product if c is None else f"{product} + {number(beta)} * {c.wide(i)}"

    return w((m, n), body)


def einsum(w: Page, *xs: Value, equation: str) -> Value:
    if equation == "->":
        return copy(w, xs[0])
    return contractions.einsum(w, list(xs), equation)


def matmul_integer(w: Page, a: Value, b: Value, a_zero: Any = None, b_zero: Any = None) -> Value:
    x = each(w, "{x} - {z}", x=a, z=a_zero) if a_zero is not None else a
    y = each(w, "{x} - {z}", x=b, z=b_zero) if b_zero is not None else b
    n = a.shape[-1]
    return w((*a.shape[:-1], b.shape[-1]), lambda i: f"sum[k < {n}] {x[(*i[:-1], 'k')]} * {y['k', i[-1]]}", dtype="int")


def quantized_matmul(
    w: Page,
    a: Value,
    a_scale: Value,
    a_zero: Value,
    b: Value,
    b_scale: Value,
    b_zero: Value,
    y_scale: Value,
    y_zero: Value,
) -> Value:
    if any(v.size != 1 for v in (a_scale, a_zero, b_scale, b_zero)):
        raise NotExpressible("no row yet for a scale for each row or column")
    one = lambda v: v[("0",) * v.rank]  # noqa: E731
    n = a.shape[-1]
    right = (lambda i: b[(*i[:-2], "k", i[-1])]) if b.rank > 2 else lambda i: b["k", i[-1]]

    def body(i: Index) -> str:
        product = f"({a[(*i[:-1], 'k')]} - {one(a_zero)}) * ({right(i)} - {one(b_zero)})"
        return f"float(sum[k < {n}] {product}) * {one(a_scale)} * {one(b_scale)}"

    return quantize(w, w((*a.shape[:-1], b.shape[-1]), body), y_scale, y_zero)


def det(w: Page, x: Value) -> Value:
    if x.shape[-1] != 2:
        raise NotExpressible("a determinant beyond 2 by 2")
    e = lambda i, a, b: x[(*i, a, b)]  # noqa: E731
    return w(x.shape[:-2], lambda i: f"{e(i, '0', '0')} * {e(i, '1', '1')} - {e(i, '0', '1')} * {e(i, '1', '0')}")


# normalisation
def over_last(kind: str) -> Callable[..., Any]:
    """The library's function of the last axis, the axis moved there and back."""

    def row(w: Page, x: Value, axis: int = -1) -> Value:
        d = x.dim(axis)
        order = [k for k in range(x.rank) if k != d] + [d]
        last = x if d == x.rank - 1 else permute(w, x, order)
        y = w.whole(last.shape, f"{kind}({last.name})")
        return y if d == x.rank - 1 else permute(w, y, [order.index(k) for k in range(x.rank)])

    return row


def layer_norm(
    w: Page, x: Value, scale: Value, bias: Any = None, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Any:
    dims = list(range(x.dim(axis), x.rank))
    y, m, s = norms.centred(w, x, dims, epsilon)
    b = (lambda i: f" + {bias.wide(i)}") if bias is not None else lambda i: ""
    return w(x.shape, lambda i: f"{y[i]} * {scale.wide(i)}{b(i)}"), m, s


def rms_norm(w: Page, x: Value, scale: Value, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> Value:
    s = over(w, x, list(range(x.dim(axis), x.rank)), True, lambda r, i, e: f"mean[{r}] {e}^2")
    return w(x.shape, lambda i: f"{x[i]} / sqrt({s.wide(i)} + {number(epsilon)}) * {scale.wide(i)}")


def instance_norm(w: Page, x: Value, scale: Value, bias: Value, epsilon: float = 1e-5) -> Value:
    return norms.instance_norm(w, x, weight=scale, bias=bias, eps=epsilon)


def group_norm(w: Page, x: Value, scale: Value, bias: Value, num_groups: int, epsilon: float = 1e-5, **_: Any) -> Value:
    return norms.group_norm(w, x, num_groups, scale, bias, epsilon)


def batch_norm(
    w: Page,
    x: Value,
    scale: Value,
    bias: Value,
    mean: Value,
    var: Value,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Any:
    if not training_mode:
        return norms.scaled(w, norms.by_stored(w, x, mean, var, epsilon), scale, bias, lambda i: (i[1],))
    axes, c = [0, *range(2, x.rank)], x.shape[1]
    m = over(w, x, axes, False, lambda r, i, e: f"mean[{r}] {e}")
    v = over(w, x, axes, False, lambda r, i, e: f"mean[{r}] ({e} - {m[i[1]]})^2")
    y = norms.scaled(w, norms.by_stored(w, x, m, v, epsilon), scale, bias, lambda i: (i[1],))
    t = number(momentum)
    kept = [w((c,), lambda i, a=a, b=b: f"{a[i]} * {t} + {b[i]} * (1 - {t})") for a, b in ((mean, m), (var, v))]
    return y, *kept


def mean_variance(w: Page, x: Value, axes: Sequence[int] = (0, 2, 3)) -> Value:
    return norms.centred(w, x, list(axes), 1e-9)[0]


def lp_norm(w: Page, x: Value, axis: int = -1, p: int = 2) -> Value:
    return normalize(w, x, p, axis, 1e-30)


def response_norm(w: Page, x: Value, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1) -> Value:
    before = (size - 1) // 2

    def body(i: Index) -> str:
        near = x.outside((i[0], f"{i[1]} + r - {before}", *i[2:]))
        return f"{x[i]} / ({number(bias)} + {number(alpha)} * (sum[r < {size}] {near}^2) / {size})^{number(beta)}"

    return w(x.shape, body)


# losses
def lost(w: Page, logp: Value, label: Value, weight: Any, ignore_index: int | None, reduction: str) -> Value:
    """-log p at the label, by the label's weight; 0 where the label is not to count."""
    at = lambda i: label[i]  # noqa: E731
    counts = (lambda i: f"{at(i)} != {number(ignore_index)}") if ignore_index is not None else lambda i: "true"
    v = (lambda i: weight.outside((at(i),))) if weight is not None else lambda i: "1"
    share = w(label.shape, lambda i: f"if {counts(i)} then {v(i)} else 0")
    each_one = w(
        label.shape, lambda i: f"if {counts(i)} then -{share[i]} * {logp.outside((i[0], at(i), *i[1:]))} else 0"
    )
    if reduction == "none":
        return each_one
    total = w((), lambda i: f"sum({each_one.name})")
    return total if reduction == "sum" else w((), lambda i: f"{total.name} / sum({share.name})")


def nll_loss(
    w: Page, x: Value, label: Value, weight: Any = None, ignore_index: int | None = None, reduction: str = "mean"
) -> Value:
    return lost(w, x, label, weight, ignore_index, reduction)


def cross_entropy(
    w: Page, x: Value, label: Value, weight: Any = None, ignore_index: int | None = None, reduction: str = "mean"
) -> Any:
    logp = softmax("log_softmax")(w, x, 1)
    return lost(w, logp, label, weight, ignore_index, reduction), logp


# optimizers: the rate R, the count T of updates so far, then parameters, gradients and states
def adagrad(
    w: Page, rate: Value, count: Value, *xs: Value, decay_factor: float, epsilon: float, norm_coefficient: float
) -> list[Value]:
    n = len(xs) // 3
    r = w((), lambda i: f"{rate.name} / (1 + float({count.name}) * {number(decay_factor)})")
    found: list[list[Value]] = [[], []]
    for x, g, h in zip(xs[:n], xs[n : 2 * n], xs[2 * n :], strict=True):
        g = w(x.shape, lambda i, x=x, g=g: f"{number(norm_coefficient)} * {x[i]} + {g[i]}")
        h = w(x.shape, lambda i, g=g, h=h: f"{h[i]} + {g[i]}^2")
        found[0].append(
            w(x.shape, lambda i, x=x, g=g, h=h: f"{x[i]} - {r.name} * {g[i]} / (sqrt({h[i]}) + {number(epsilon)})")
        )
        found[1].append(h)
    return [*found[0], *found[1]]


def adam(
    w: Page,
    rate: Value,
    count: Value,
    *xs: Value,
    alpha: float = 0.9,
    beta: float = 0.999,
    epsilon: float = 1e-6,
    norm_coefficient: float = 0,
    norm_coefficient_post: float = 0,
) -> list[Value]:
    n, a, b = len(xs) // 4, number(alpha), number(beta)
    t = float(count.numbers)
    r = f"{rate.name} * {number(math.sqrt(1 - beta**t) / (1 - alpha**t))}" if t else rate.name
    found: list[list[Value]] = [[], [], []]
    for x, g, v, h in zip(xs[:n], xs[n : 2 * n], xs[2 * n : 3 * n], xs[3 * n :], strict=True):
        g = w(x.shape, lambda i, x=x, g=g: f"{number(norm_coefficient)} * {x[i]} + {g[i]}")
        v = w(x.shape, lambda i, v=v, g=g: f"{a} * {v[i]} + (1 - {a}) * {g[i]}")
        h = w(x.shape, lambda i, h=h, g=g: f"{b} * {h[i]} + (1 - {b}) * {g[i]}^2")
        y = w(x.shape, lambda i, x=x, v=v, h=h: f"{x[i]} - {r} * {v[i]} / (sqrt({h[i]}) + {number(epsilon)})")
        for line, made in zip(found, (y, v, h), strict=True):
            line.append(made)
        found[0][-1] = w(x.shape, lambda i, y=y: f"(1 - {number(norm_coefficient_post)}) * {y[i]}")
    return [*found[0], *found[1], *found[2]]


def momentum(
    w: Page, rate: Value, count: Value, *xs: Value, alpha: float, beta: float, mode: str, norm_coefficient: float
) -> list[Value]:
    n, a = len(xs) // 3, number(alpha)
    b = number(beta if float(count.numbers) > 0 else 1)
    found: list[list[Value]] = [[], []]
    for x, g, v in zip(xs[:n], xs[n : 2 * n], xs[2 * n :], strict=True):
        g = w(x.shape, lambda i, x=x, g=g: f"{number(norm_coefficient)} * {x[i]} + {g[i]}")
        v = w(x.shape, lambda i, v=v, g=g: f"{a} * {v[i]} + {b} * {g[i]}")
        step = (lambda i, g=g, v=v: f"({g[i]} + {a} * {v[i]})") if mode == "nesterov" else lambda i, v=v: v[i]
        found[0].append(w(x.shape, lambda i, x=x, step=step: f"{x[i]} - {rate.name} * {step(i)}"))
        found[1].append(v)
    return [*found[0], *found[1]]


def mel_weights(w: Page, bins: Value, length: Value, rate: Value, low: Value, high: Value, **_: Any) -> Value:
    """Triangles with corners at equal distances on the mel scale, in whole places of the spectrum."""
    n, size, hertz = ints(bins)[0], ints(length)[0], ints(rate)[0]
    mel = "2595 * log(1 + {f} / 700) / log(10)"
    a, b = (w((), lambda i, v=v: mel.format(f=v.name)) for v in (low, high))
    m = w((n + 2,), lambda i: f"{a.name} + float({i[0]}) * ({b.name} - {a.name}) / {n + 2}")
    f = w((n + 2,), lambda i: f"700 * (exp({m[i]} / 2595 * log(10)) - 1)")
    p = w((n + 2,), lambda i: f"floor({size + 1} * {f[i]} / {hertz})")

    def body(i: Index) -> str:
        left, top, right = (p[f"{i[1]} + {k}"] for k in range(3))
        k = f"float({i[0]})"
        up = f"if {top} == {left} then (if {k} == {top} then 1 else 0) else ({k} - {left}) / ({top} - {left})"
        down = f"({right} - {k}) / ({right} - {top})"
        return f"if {k} >= {left} and {k} <= {top} then ({up}) else if {k} > {top} and {k} < {right} then {down} else 0"

    return w((size // 2 + 1, n), body)


ROWS: dict[str, Callable[..., Any]] = {
    **{name: reduction(template) for name, template in REDUCTIONS.items()},
    "CumSum": running("sum"),
    "CumProd": running("prod"),
    "MatMul": contractions.matmul,
    "Gemm": gemm,
    "Einsum": einsum,
    "MatMulInteger": matmul_integer,
    "QLinearMatMul": quantized_matmul,
    "Det": det,
    "Softmax": over_last("softmax"),
    "LogSoftmax": over_last("log_softmax"),
    "LayerNormalization": layer_norm,
    "RMSNormalization": rms_norm,
    "InstanceNormalization": instance_norm,
    "GroupNormalization": group_norm,
    "BatchNormalization": batch_norm,
    "MeanVarianceNormalization": mean_variance,
    "LpNormalization": lp_norm,
    "LRN": response_norm,
    "NegativeLogLikelihoodLoss": nll_loss,
    "SoftmaxCrossEntropyLoss": cross_entropy,
    "preview.training.Adagrad": adagrad,
    "preview.training.Adam": adam,
    "preview.training.Momentum": momentum,
    "MelWeightMatrix": mel_weights,
}
