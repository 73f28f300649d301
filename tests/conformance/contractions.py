"""Products of tensors: sums over indices, as the book writes them. Fourier transforms are products too."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tests.conformance.elementwise import spread
from tests.conformance.page import NotExpressible, OutOfScope, Page, Value, broadcast, names, number, ranges, swap
from tests.conformance.shapes import copy, expand, reshape

Index = tuple[str, ...]


def matmul(w: Page, x: Value, y: Value) -> Value:
    """NumPy's: a vector is a row on the left and a column on the right, leading axes are spread."""
    if x.rank == 1 and y.rank == 1:
        return w((), lambda i: f"sum[k < {x.size}] {x['k']} * {y['k']}")
    a = reshape(w, x, (1, x.size)) if x.rank == 1 else x
    b = reshape(w, y, (y.size, 1)) if y.rank == 1 else y
    lead = broadcast(a.shape[:-2], b.shape[:-2])
    if not a.shape[-1]:
        z = w((*lead, a.shape[-2], b.shape[-1]), lambda i: "0")
    else:
        z = w(
            (*lead, a.shape[-2], b.shape[-1]),
            lambda i: (
                f"sum[k < {a.shape[-1]}] "
                f"{a.wide((*i[:-1], 'k')) if a.shape[-1] > 1 else at(a, (*i[:-1], 'k'))} * "
                f"{at(b, (*i[:-2], 'k', i[-1]))}"
            ),
        )
    shape = [
        n
        for k, n in enumerate(z.shape)
        if not (k == z.rank - 2 and x.rank == 1) and not (k == z.rank - 1 and y.rank == 1)
    ]
    return reshape(w, z, shape) if len(shape) != z.rank else z


def at(x: Value, i: Index) -> str:
    """Spread over the leading axes only: the last two are read where they are."""
    return x[(*(("0" if n == 1 else k) for k, n in zip(i[len(i) - x.rank : -2], x.shape[:-2], strict=True)), *i[-2:])]


def added(w: Page, x: Value, product: Value, beta: float, alpha: float) -> Value:
    return w(product.shape, lambda i: f"{number(beta)} * {x.wide(i)} + {number(alpha)} * {product[i]}")


def addmm(w: Page, x: Value, a: Value, b: Value, beta: float = 1, alpha: float = 1) -> Value:
    return added(w, x, matmul(w, a, b), beta, alpha)


def addbmm(w: Page, x: Value, a: Value, b: Value, beta: float = 1, alpha: float = 1) -> Value:
    n, k = a.shape[0], a.shape[2]
    product = w((a.shape[1], b.shape[2]), lambda i: f"sum[n < {n}, k < {k}] {a['n', i[0], 'k']} * {b['n', 'k', i[1]]}")
    return added(w, x, product, beta, alpha)


def outer(w: Page, x: Value, y: Value) -> Value:
    return w((x.size, y.size), lambda i: f"{x[i[0]]} * {y[i[1]]}")


def addr(w: Page, x: Value, a: Value, b: Value, beta: float = 1, alpha: float = 1) -> Value:
    return added(w, x, outer(w, a, b), beta, alpha)


def inner(w: Page, x: Value, y: Value) -> Value:
    if not x.rank or not y.rank:
        return spread(w, "{x} * {y}", x=x, y=y)
    n = x.rank - 1
    return w(
        (*x.shape[:-1], *y.shape[:-1]), lambda i: f"sum[k < {x.shape[-1]}] {x[(*i[:n], 'k')]} * {y[(*i[n:], 'k')]}"
    )


def tensordot(w: Page, x: Value, y: Value, dims: Any = 2) -> Value:
    if isinstance(dims, int):
        a, b = list(range(x.rank - dims, x.rank)), list(range(dims))
    else:
        a, b = ([v.dim(d) for d in ds] for v, ds in zip((x, y), dims, strict=True))
    k = names("k", len(a))
    free_x = [d for d in range(x.rank) if d not in a]
    free_y = [d for d in range(y.rank) if d not in b]
    extents = [max(x.shape[d], y.shape[e]) for d, e in zip(a, b, strict=True)]

    def body(i: Index) -> str:
        left = tuple(
            ("0" if x.shape[d] == 1 else k[a.index(d)]) if d in a else i[free_x.index(d)] for d in range(x.rank)
        )
        right = tuple(
            ("0" if y.shape[d] == 1 else k[b.index(d)]) if d in b else i[len(free_x) + free_y.index(d)]
            for d in range(y.rank)
        )
        return f"sum[{ranges(k, extents)}] {x[left]} * {y[right]}"

    return w([*(x.shape[d] for d in free_x), *(y.shape[d] for d in free_y)], body)


def einsum(w: Page, xs: Sequence[Value], equation: str) -> Value:
    equation = equation.replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    rank = max((x.rank - len(t.replace("...", "")) for t, x in zip(terms, xs, strict=True) if "..." in t), default=0)
    dots = "".join(chr(ord("A") + k) for k in range(rank))
    terms = [
        t.replace(
            "...",
            dots[len(dots) - (x.rank - len(t.replace("...", ""))) :] if x.rank > len(t.replace("...", "")) else "",
        )
        for t, x in zip(terms, xs, strict=True)
    ]
    if not arrow:
        letters = sorted(set("".join(terms)) - set(dots))
        right = "..." + "".join(c for c in letters if "".join(terms).count(c) == 1)
    right = right.replace("...", dots)
    extents: dict[str, int] = {}
    for t, x in zip(terms, xs, strict=True):
        for c, n in zip(t, x.shape, strict=True):
            extents[c] = max(extents.get(c, 1), n)
    gone = [c for c in extents if c not in right]

    def body(i: Index) -> str:
        index = {c: f"k{ord(c)}" for c in gone} | dict(zip(right, i, strict=True))
        factors = [
            x[tuple("0" if n == 1 else index[c] for c, n in zip(t, x.shape, strict=True))]
            for t, x in zip(terms, xs, strict=True)
        ]
        head = f"sum[{ranges([index[c] for c in gone], [extents[c] for c in gone])}] " if gone else ""
        return head + " * ".join(factors)

    return w([extents[c] for c in right], body)


def multi_dot(w: Page, xs: Sequence[Value]) -> Value:
    found = xs[0]
    for x in xs[1:]:
        found = matmul(w, found, x)
    return found


def matrix_power(w: Page, x: Value, n: int) -> Value:
    if n < 0:
        raise NotExpressible("the inverse of a matrix")
    if n == 0:
        return w(x.shape, lambda i: f"if {i[-1]} == {i[-2]} then 1 else 0")
    return multi_dot(w, [x] * n) if n > 1 else copy(w, x)


def cross(w: Page, x: Value, y: Value, dim: int | None = None) -> Value:
    shape = broadcast(x.shape, y.shape)
    d = next(k for k, n in enumerate(shape) if n == 3) if dim is None else dim % len(shape)
    x, y = expand(w, x, shape), expand(w, y, shape)

    def body(i: Index) -> str:
        a, b = swap(i, d, f"({i[d]} + 1) % 3"), swap(i, d, f"({i[d]} + 2) % 3")
        return f"{x[a]} * {y[b]} - {x[b]} * {y[a]}"

    return w(shape, body)


def linalg_cross(w: Page, x: Value, y: Value, dim: int = -1) -> Value:
    return cross(w, x, y, dim)


def vecdot(w: Page, x: Value, y: Value, dim: int = -1) -> Value:
    shape = broadcast(x.shape, y.shape)
    d = dim % len(shape)
    x, y = expand(w, x, shape), expand(w, y, shape)
    return w(
        (*shape[:d], *shape[d + 1 :]),
        lambda i: f"sum[k < {shape[d]}] {x[(*i[:d], 'k', *i[d:])]} * {y[(*i[:d], 'k', *i[d:])]}",
    )


def vander(w: Page, x: Value, N: int | None = None) -> Value:
    x = x if x.rank else reshape(w, x, (1,))
    n = x.shape[-1] if N is None else N
    return w((*x.shape, n), lambda i: f"prod[k < {n} where k < {i[-1]}] {x[i[:-1]]}")


def linear(w: Page, x: Value, weight: Value, bias: Any = None) -> Value:
    b = (
        f" + {bias[f'i{x.rank - 1}']}"
        if bias is not None and weight.rank > 1
        else f" + {bias.name}"
        if bias is not None
        else ""
    )
    if weight.rank == 1:
        return w(x.shape[:-1], lambda i: f"(sum[k < {weight.size}] {x[(*i, 'k')]} * {weight['k']}){b}")
    return w(
        (*x.shape[:-1], weight.shape[0]),
        lambda i: f"(sum[k < {weight.shape[1]}] {x[(*i[:-1], 'k')]} * {weight[i[-1], 'k']}){b}",
    )


def bilinear(w: Page, x: Value, y: Value, weight: Value, bias: Any = None) -> Value:
    o, a, b = weight.shape
    return w(
        (*x.shape[:-1], o),
        lambda i: (
            f"(sum[a < {a}, b < {b}] {x[(*i[:-1], 'a')]} * {weight[i[-1], 'a', 'b']} * "
            f"{y[(*i[:-1], 'b')]})" + (f" + {bias[i[-1]]}" if bias is not None else "")
        ),
    )


def attention(
    w: Page,
    q: Value,
    k: Value,
    v: Value,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    if dropout_p:
        raise OutOfScope("PyTorch's own random numbers")
    if enable_gqa:
        times = q.shape[-3] // k.shape[-3]
        k, v = (
            w((*z.shape[:-3], q.shape[-3], *z.shape[-2:]), lambda i, z=z: z[(*i[:-3], f"{i[-3]} // {times}", *i[-2:])])
            for z in (k, v)
        )
    lead = broadcast(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    t, s, e = q.shape[-2], k.shape[-2], q.shape[-1]
    factor = f"/ sqrt({e})" if scale is None else f"* {number(scale)}"
    score = w(
        (*lead, t, s), lambda i: f"(sum[e < {e}] {at(q, (*i[:-1], 'e'))} * {at(k, (*i[:-2], i[-1], 'e'))}) {factor}"
    )
    if is_causal:
        score = w(score.shape, lambda i: f"if {i[-1]} > {i[-2]} then -inf else {score[i]}")
    if attn_mask is not None:
        m = attn_mask
        score = w(
            score.shape,
            lambda i: f"if {m.wide(i)} then {score[i]} else -inf" if m.dtype == "bool" else f"{score[i]} + {m.wide(i)}",
        )
    p = w(score.shape, lambda i: f"exp({score[i]}) / sum[r < {s}] exp({score[(*i[:-1], 'r')]})")
    return w((*lead, t, v.shape[-1]), lambda i: f"sum[s < {s}] {p[(*i[:-1], 's')]} * {at(v, (*i[:-2], 's', i[-1]))}")


# Fourier transforms: pairs (real, imaginary) on a last axis of extent 2
def fft_scale(n: int, norm: str | None, inverse: bool) -> float:
    norm = norm or "backward"
    if norm == "ortho":
        return 1 / math.sqrt(n)
    return 1 / n if (norm == "backward") == inverse else 1.0


def resized(w: Page, x: Value, d: int, n: int | None, pair: bool = False) -> Value:
    if n is None or x.shape[d] == n:
        return x
    return w(swap(x.shape, d, n), lambda i: x.outside(i) if n > x.shape[d] else x[i])


def dft(w: Page, x: Value, d: int, sign: int, scale: float, outputs: int | None = None) -> Value:
    """z[k] = scale Σ exp(sign 2πi jk/n) x[j] along axis d of pairs."""
    n = x.shape[d]
    m = n if outputs is None else outputs

    def body(i: Index) -> str:
        angle = f"2 * pi * (({i[d]} * j) % {n}) / {n}"
        re, im = x[(*swap(i[:-1], d, "j"), "0")], x[(*swap(i[:-1], d, "j"), "1")]
        s = "" if sign > 0 else "-"
        return (
            f"if {i[-1]} == 0 then {number(scale)} * (sum[j < {n}] ({re} * cos({angle}) - {im} * sin({s}{angle}))) "
            f"else {number(scale)} * (sum[j < {n}] ({re} * sin({s}{angle}) + {im} * cos({angle})))"
        )

    return w(swap(x.shape, d, m), body)


def pairs(w: Page, x: Value) -> Value:
    return w((*x.shape, 2), lambda i: f"if {i[-1]} == 0 then {x[i[:-1]]} else 0")


def real(w: Page, x: Value) -> Value:
    return w(x.shape[:-1], lambda i: x[(*i, "0")])


def axes_of(x: Value, s: Any, dim: Any, default: Any) -> tuple[list[int], list[int | None]]:
    dims = default if dim is None else dim
    if dims is None:
        dims = range(x.rank) if s is None else range(x.rank - len(s), x.rank)
    dims = [x.dim(d) for d in ((dims,) if isinstance(dims, int) else dims)]
    sizes = [None] * len(dims) if s is None else [None if v == -1 else v for v in ((s,) if isinstance(s, int) else s)]
    return dims, sizes


def fourier(sign: int, default: Any, half: bool = False) -> Callable[..., Any]:
    """fft, ifft, rfft, ihfft and their forms of more axes, of a real tensor."""

    def row(w: Page, x: Value, s: Any = None, dim: Any = None, norm: str | None = None, n: Any = None) -> Value:
        dims, sizes = axes_of(x, s if n is None else n, dim, default)
        for d, size in zip(dims, sizes, strict=True):
            x = resized(w, x, d, size)
        z = pairs(w, x)
        for d in reversed(dims):
            full = z.shape[d]
            z = dft(w, z, d, sign, fft_scale(full, norm, sign > 0), full // 2 + 1 if half and d == dims[-1] else None)
        return z

    return row


def hermitian(sign: int, default: Any) -> Callable[..., Any]:
    """irfft and hfft of a real tensor: the last axis is half of one whose other half mirrors it."""

    def row(w: Page, x: Value, s: Any = None, dim: Any = None, norm: str | None = None, n: Any = None) -> Value:
        dims, sizes = axes_of(x, s if n is None else n, dim, default)
        last = dims[-1]
        full = 2 * (x.shape[last] - 1) if sizes[-1] is None else sizes[-1]
        for d, size in zip(dims[:-1], sizes[:-1], strict=True):
            x = resized(w, x, d, size)
        x = resized(w, x, last, full // 2 + 1)
        z = pairs(w, x)
        for d in dims[:-1]:
            z = dft(w, z, d, sign, fft_scale(z.shape[d], norm, sign > 0))
        scale = fft_scale(full, norm, sign > 0)

        def body(i: Index) -> str:
            angle = f"2 * pi * (({i[last]} * j) % {full}) / {full}"
            weight = f"(if j == 0 or 2 * j == {full} then 1 else 2)"
            re, im = z[(*swap(i, last, "j"), "0")], z[(*swap(i, last, "j"), "1")]
            return (
                f"{number(scale)} * (sum[j < {full // 2 + 1}] {weight} * "
                f"({re} * cos({angle}) {'-' if sign > 0 else '+'} {im} * sin({angle})))"
            )

        return w(swap(x.shape, last, full), body)

    return row


def forms(name: str, make: Callable[..., Any], *rest: Any) -> dict[str, Callable[..., Any]]:
    return {
        f"fft.{name}": make(*rest[:1], -1, *rest[1:]),
        f"fft.{name}2": make(*rest[:1], (-2, -1), *rest[1:]),
        f"fft.{name}n": make(*rest[:1], None, *rest[1:]),
    }


ROWS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot", "vdot"), matmul),
    "__rmatmul__": lambda w, x, y: matmul(w, y, x),
    **dict.fromkeys(("addmm", "addmm.decomposed", "addmv", "baddbmm"), addmm),
    "addbmm": addbmm,
    "addr": addr,
    "outer": outer,
    "inner": inner,
    "tensordot": tensordot,
    "einsum": einsum,
    "linalg.multi_dot": multi_dot,
    "linalg.matrix_power": matrix_power,
    "cross": cross,
    "linalg.cross": linalg_cross,
    "linalg.vecdot": vecdot,
    "linalg.vander": vander,
    "nn.functional.linear": linear,
    "nn.functional.bilinear": bilinear,
    "nn.functional.scaled_dot_product_attention": attention,
    **forms("fft", fourier, -1),
    **forms("ifft", fourier, 1),
    **forms("rfft", fourier, -1, True),
    **forms("ihfft", fourier, 1, True),
    **forms("irfft", hermitian, 1),
    **forms("hfft", hermitian, -1),
}
