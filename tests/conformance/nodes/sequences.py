"""ONNX's recurrent layers, attention, and rotary positions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tests.conformance.nodes.places import Index, ints
from tests.conformance.page import NotExpressible, Page, Value, number


class Cells:
    """One direction of a recurrent layer: its tensors' texts at (t, n, j), the state read one place before."""

    def __init__(
        self, w: Page, x: Value, d: int, weights: tuple[Value, Value, Any], start: Any, back: bool, batched: bool
    ) -> None:
        self.w, self.d, self.batched = w, str(d), batched
        self.input, self.state, self.bias = weights
        self.x, self.start, self.back = x, start, back
        self.hidden = self.state.shape[-1]
        self.t, self.n = (x.shape[1], x.shape[0]) if batched else (x.shape[0], x.shape[1])

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.t, self.n, self.hidden)

    def next(self, ahead: int) -> str:
        """The name of the tensor that is defined `ahead` statements from now."""
        return f"y{len(self.w.statements) + ahead}"

    def before(self, name: str, i: Index, j: str, start: Any) -> str:
        """The state one place before, or where it starts."""
        t, n = i[0], i[1]
        read = f"{name}[{t} {'+' if self.back else '-'} 1, {n}, {j}; 0]"
        if start is None:
            return read
        own = start[n, self.d, j] if self.batched else start[self.d, n, j]
        return f"(if {t} == {self.t - 1 if self.back else 0} then {own} else {read})"

    def fed(self, gate: int) -> Value:
        """x W of one gate, with its bias."""
        h, i_size = self.hidden, self.x.shape[-1]

        def body(i: Index) -> str:
            row = f"{gate * h} + {i[2]}"
            read = self.x[(i[1], i[0], "k")] if self.batched else self.x[(i[0], i[1], "k")]
            total = f"sum[k < {i_size}] {read} * {self.input[self.d, row, 'k']}"
            return total if self.bias is None else f"({total}) + {self.bias[self.d, row]}"

        return self.w(self.shape, body)

    def carried(self, name: str, i: Index, gate: int, gates: int, factor: str = "") -> str:
        """h U of one gate, with its bias."""
        h = self.hidden
        row = f"{gate * h} + {i[2]}"
        total = f"(sum[k < {h}] {self.before(name, i, 'k', self.start)}{factor} * {self.state[self.d, row, 'k']})"
        return total if self.bias is None else f"({total} + {self.bias[self.d, f'{(gates + gate) * h} + {i[2]}']})"


def directions(w: Page, x: Value, direction: str, layout: int, make: Callable[[int, bool], tuple[Value, ...]]) -> Any:
    """Y of all places, and the last states, of both directions or of one."""
    backward = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
    found = [make(d, back) for d, back in enumerate(backward)]
    t, n, h = found[0][0].shape
    last = [0 if back else t - 1 for back in backward]

    def choose(reads: list[str], d: str) -> str:
        return reads[0] if len(reads) == 1 else f"if {d} == 0 then {reads[0]} else {reads[1]}"

    def whole(i: Index) -> str:
        j, d = ((i[1], i[0], i[3]), i[2]) if layout else ((i[0], i[2], i[3]), i[1])
        return choose([y[0][j] for y in found], d)

    def end(k: int) -> Value:
        def body(i: Index) -> str:
            m, d = (i[0], i[1]) if layout else (i[1], i[0])
            return choose([y[k][str(a), m, i[2]] for y, a in zip(found, last, strict=True)], d)

        return w((n, len(found), h) if layout else (len(found), n, h), body)

    y = w((n, t, len(found), h) if layout else (t, len(found), n, h), whole)
    return y, *(end(k) for k in range(len(found[0])))


def checked(x: Value, lengths: Any, layout: int, attributes: dict[str, Any]) -> None:
    t = x.shape[1] if layout else x.shape[0]
    if lengths is not None and any(n != t for n in ints(lengths)):
        raise NotExpressible("no row yet for sequences of unequal length")
    if attributes:
        raise NotExpressible(f"no row yet for {', '.join(sorted(attributes))}")


def rnn(
    w: Page,
    x: Value,
    weight: Value,
    state: Value,
    bias: Any = None,
    lengths: Any = None,
    start: Any = None,
    hidden_size: int = 0,
    direction: str = "forward",
    layout: int = 0,
    **attributes: Any,
) -> Any:
    checked(x, lengths, layout, attributes)

    def make(d: int, back: bool) -> tuple[Value, ...]:
        c = Cells(w, x, d, (weight, state, bias), start, back, bool(layout))
        a = c.fed(0)
        h = c.next(0)
        return (w(c.shape, lambda i: f"tanh({a[i]} + {c.carried(h, i, 0, 1)})"),)

    return directions(w, x, direction, layout, make)


def gru(
    w: Page,
    x: Value,
    weight: Value,
    state: Value,
    bias: Any = None,
    lengths: Any = None,
    start: Any = None,
    hidden_size: int = 0,
    direction: str = "forward",
    layout: int = 0,
    linear_before_reset: int = 0,
    **attributes: Any,
) -> Any:
    checked(x, lengths, layout, attributes)

    def make(d: int, back: bool) -> tuple[Value, ...]:
        c = Cells(w, x, d, (weight, state, bias), start, back, bool(layout))
        a = [c.fed(gate) for gate in range(3)]
        h = c.next(4)
        z = w(c.shape, lambda i: f"sigmoid({a[0][i]} + {c.carried(h, i, 0, 3)})")
        r = w(c.shape, lambda i: f"sigmoid({a[1][i]} + {c.carried(h, i, 1, 3)})")
        if linear_before_reset:
            u = w(c.shape, lambda i: f"{r[i]} * {c.carried(h, i, 2, 3)}")
        else:
            u = w(c.shape, lambda i: c.carried(h, i, 2, 3, f" * {r[i[0], i[1], 'k']}"))
        m = w(c.shape, lambda i: f"tanh({a[2][i]} + {u[i]})")
        return (w(c.shape, lambda i: f"(1 - {z[i]}) * {m[i]} + {z[i]} * {c.before(h, i, i[2], start)}"),)

    return directions(w, x, direction, layout, make)


def lstm(
    w: Page,
    x: Value,
    weight: Value,
    state: Value,
    bias: Any = None,
    lengths: Any = None,
    start: Any = None,
    cell: Any = None,
    peep: Any = None,
    hidden_size: int = 0,
    direction: str = "forward",
    layout: int = 0,
    **attributes: Any,
) -> Any:
    """Gates: input, output, forget, cell."""
    checked(x, lengths, layout, attributes)

    def make(d: int, back: bool) -> tuple[Value, ...]:
        k = Cells(w, x, d, (weight, state, bias), start, back, bool(layout))
        a = [k.fed(gate) for gate in range(4)]
        c_name, h = k.next(3), k.next(5)

        def gate(i: Index, which: int, seen: str, p: int) -> str:
            peeped = f" + {peep[k.d, f'{p * k.hidden} + {i[2]}']} * {seen}" if peep is not None else ""
            return f"sigmoid({a[which][i]} + {k.carried(h, i, which, 4)}{peeped})"

        old = lambda i: k.before(c_name, i, i[2], cell)  # noqa: E731
        g = w(k.shape, lambda i: gate(i, 0, old(i), 0))
        f = w(k.shape, lambda i: gate(i, 2, old(i), 2))
        m = w(k.shape, lambda i: f"tanh({a[3][i]} + {k.carried(h, i, 3, 4)})")
        c = w(k.shape, lambda i: f"{f[i]} * {old(i)} + {g[i]} * {m[i]}")
        o = w(k.shape, lambda i: gate(i, 1, c[i], 1))
        return w(k.shape, lambda i: f"{o[i]} * tanh({c[i]})"), c

    return directions(w, x, direction, layout, make)


# attention
def heads(w: Page, x: Value, n: int) -> Value:
    """[batch, time, heads * d] as [batch, heads, time, d]."""
    b, t, c = x.shape
    d = c // n
    return w((b, n, t, d), lambda i: x[i[0], i[2], f"{i[1]} * {d} + {i[3]}"])


def attention(
    w: Page,
    q: Value,
    k: Value,
    v: Value,
    mask: Any = None,
    past_key: Any = None,
    past_value: Any = None,
    lengths: Any = None,
    is_causal: int = 0,
    q_num_heads: int = 0,
    kv_num_heads: int = 0,
    qk_matmul_output_mode: int = 0,
    scale: float | None = None,
    softcap: float = 0,
    softmax_precision: int = 0,
    left_window_size: int = -1,
    right_window_size: int = -1,
    **attributes: Any,
) -> Any:
    if attributes:
        raise NotExpressible(f"no row yet for {', '.join(sorted(attributes))}")
    flat = q.rank == 3
    if flat:
        q, k, v = heads(w, q, q_num_heads), heads(w, k, kv_num_heads), heads(w, v, kv_num_heads)
    past = past_key.shape[2] if past_key is not None else 0
    if past:
        k, v = joined(w, past_key, k), joined(w, past_value, v)
    (b, h, t, e), s = q.shape, k.shape[2]
    each = h // k.shape[1]
    own = (lambda i: f"{i} // {each}") if each > 1 else lambda i: i
    factor = number(1 / math.sqrt(e) if scale is None else scale)
    raw = w((b, h, t, s), lambda i: f"{factor} * (sum[e < {e}] {q[(*i[:3], 'e')]} * {k[i[0], own(i[1]), i[3], 'e']})")
    capped = w(raw.shape, lambda i: f"{softcap} * tanh({raw[i]} / {softcap})") if softcap else raw
    hidden = []
    if is_causal:
        hidden.append(lambda i: f"{i[3]} > {i[2]} + {offset(w, i, lengths, past, t)}")
    if left_window_size >= 0:
        hidden.append(lambda i: f"{i[3]} + {left_window_size} < {i[2]} + {offset(w, i, lengths, past, t)}")
    if right_window_size >= 0:
        hidden.append(lambda i: f"{i[3]} > {i[2]} + {offset(w, i, lengths, past, t)} + {right_window_size}")
    if lengths is not None:
        hidden.append(lambda i: f"{i[3]} >= {lengths[i[0]]}")
    score = capped
    if mask is not None:
        short = mask.shape[-1] < s
        read = (lambda i: widened(mask, i)) if short else mask.wide
        if mask.dtype == "bool":
            shown = w(score.shape, lambda i: read(i), dtype="bool") if not short else mask
            score = w(score.shape, lambda i: f"if {shown.wide(i)} then {capped[i]} else -inf")
        else:
            score = w(score.shape, lambda i: f"{capped[i]} + {read(i)}")
    if hidden:
        seen = score
        score = w(seen.shape, lambda i: f"if {' or '.join(z(i) for z in hidden)} then -inf else {seen[i]}")
    p = w.whole(score.shape, f"softmax({score.name})")
    y = w((b, h, t, v.shape[3]), lambda i: f"sum[s < {s}] {p[(*i[:3], 's')]} * {v[i[0], own(i[1]), 's', i[3]]}")
    if flat:
        d = v.shape[3]
        z = y
        y = w((b, t, h * d), lambda i: z[i[0], f"{i[2]} // {d}", i[1], f"{i[2]} % {d}"])
    shown_scores = {0: raw, 1: capped, 2: score, 3: p}[qk_matmul_output_mode]
    return y, k, v, shown_scores


def offset(w: Page, i: Index, lengths: Any, past: int, t: int) -> str:
    """How many keys stand before the first query."""
    return f"{past}" if lengths is None else f"({lengths[i[0]]} - {t})"


def widened(mask: Value, i: Index) -> str:
    own = tuple("0" if n == 1 else j for j, n in zip(i[4 - mask.rank :], mask.shape, strict=True))
    return mask.outside(own, "(-inf)")


def joined(w: Page, a: Value, b: Value) -> Value:
    n = a.shape[2]

    def body(i: Index) -> str:
        return f"if {i[2]} < {n} then {a.outside(i)} else {b.outside((*i[:2], f'{i[2]} - {n}', i[3]))}"

    return w((*a.shape[:2], n + b.shape[2], a.shape[3]), body)


def flex_attention(w: Page, q: Value, k: Value, v: Value, scale: float | None = None, **attributes: Any) -> Any:
    if attributes:
        raise NotExpressible(f"a subgraph as an attribute: {', '.join(sorted(attributes))}")
    return attention(w, q, k, v, scale=scale)[0]


def rotary(
    w: Page,
    x: Value,
    cos: Value,
    sin: Value,
    position: Any = None,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Value:
    flat = x.rank == 3
    z = heads(w, x, num_heads) if flat else x
    b, h, t, d = z.shape
    m = rotary_embedding_dim or d
    half = m // 2
    if position is not None:
        at = w(position.shape, lambda i: f"clip({position[i]}, 0, {cos.shape[0] - 1})", dtype=f"index {cos.shape[0]}")
        read = lambda table, i, k: table[at[i[0], i[2]], k]  # noqa: E731
    else:
        read = lambda table, i, k: table[i[0], i[2], k]  # noqa: E731

    # place j of a pair, and which of the two it is
    k = (lambda j: f"{j} // 2") if interleaved else lambda j: f"{j} % {half}"
    first = (lambda j: f"{j} % 2 == 0") if interleaved else lambda j: f"{j} < {half}"
    c = w((b, t, m), lambda i: read(cos, (i[0], "", i[1]), k(i[2])))
    s = w((b, t, m), lambda i: read(sin, (i[0], "", i[1]), k(i[2])))
    other = (lambda j: f"2 * ({j} // 2) + ({j} + 1) % 2") if interleaved else lambda j: f"({j} + {half}) % {m}"

    turn = w((b, h, t, m), lambda i: z.outside((*i[:3], other(i[3]))))

    def body(i: Index) -> str:
        a, near = c[i[0], i[2], i[3]], s[i[0], i[2], i[3]]
        sign = f"(if {first(i[3])} then -1 else 1)"
        return f"{z[i]} * {a} + {sign} * {turn[i]} * {near}"

    y = w((b, h, t, m), body)
    if m < d:
        part = y
        y = w((b, h, t, d), lambda i: f"if {i[3]} < {m} then {part.outside(i)} else {z[i]}")
    if not flat:
        return y
    whole = y
    return w(x.shape, lambda i: whole[i[0], f"{i[2]} // {d}", i[1], f"{i[2]} % {d}"])


def linear_attention(
    w: Page,
    q: Value,
    k: Value,
    v: Value,
    past: Any = None,
    decay: Any = None,
    beta: Any = None,
    q_num_heads: int = 0,
    kv_num_heads: int = 0,
    update_rule: str = "gated_delta",
    scale: float = 0,
    **_: Any,
) -> Any:
    """S[t] = exp(g) S[t - 1] + k ⊗ β (v - S k); y = scale q S: a recurrence over a matrix for each head."""
    q, k, v = heads(w, q, q_num_heads), heads(w, k, kv_num_heads), heads(w, v, kv_num_heads)
    (b, h, t, dk), dv, n = k.shape, v.shape[3], q.shape[1]
    name = f"y{len(w.statements) + (1 if 'delta' in update_rule else 0)}"

    def before(i: Index, x: str, y: str) -> str:
        read = f"{name}[{i[0]}, {i[1]}, {i[2]} - 1, {x}, {y}; 0]"
        read = read if past is None else f"(if {i[2]} == 0 then {past[i[0], i[1], x, y]} else {read})"
        if "gated" not in update_rule:
            return read
        g = decay[i[0], i[2], i[1]] if decay.shape[2] == h else decay[i[0], i[2], f"{i[1]} * {dk} + {x}"]
        return f"exp({g}) * {read}"

    if "delta" in update_rule:
        rate = lambda i: beta[i[0], i[2], "0" if beta.shape[2] == 1 else i[1]]  # noqa: E731
        u = w(
            v.shape,
            lambda i: f"{rate(i)} * ({v[i]} - (sum[x < {dk}] {before(i, 'x', i[3])} * {k[(*i[:3], 'x')]}))",
        )
    else:
        u = v
    state = w(
        (b, h, t, dk, dv),
        lambda i: f"{before(i, i[3], i[4])} + {k[i[:4]]} * {u[(*i[:3], i[4])]}",
    )
    factor, each = number(scale or 1 / math.sqrt(dk)), n // h
    y = w(
        (b, t, n * dv),
        lambda i: (
            f"{factor} * (sum[x < {dk}] {q[i[0], f'{i[2]} // {dv}', i[1], 'x']} * "
            f"{state[i[0], f'{i[2]} // {dv * each}', i[1], 'x', f'{i[2]} % {dv}']})"
        ),
    )
    return y, w((b, h, dk, dv), lambda i: state[i[0], i[1], str(t - 1), i[2], i[3]])


ROWS: dict[str, Callable[..., Any]] = {
    "RNN": rnn,
    "GRU": gru,
    "LSTM": lstm,
    "Attention": attention,
    "preview.FlexAttention": flex_attention,
    "RotaryEmbedding": rotary,
    "LinearAttention": linear_attention,
}
