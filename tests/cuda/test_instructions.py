"""Each instruction against its definition, lane by lane in exact arithmetic, at numbers where such things go wrong."""

from __future__ import annotations

import math
import struct
from fractions import Fraction

import numpy as np
import pytest

from tests.cuda.running import handwritten, launch

INTEGERS = [0, 1, 2, 3, 5, 31, 32, 33, 100, 127, 128, 255, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x12345678]
INTEGERS += [2**31 - 1, 2**31, 2**31 + 1, 2**32 - 2, 2**32 - 1]
LONG = [*INTEGERS, 2**32, 2**40 + 12345, 2**63 - 1, 2**63, 2**64 - 5, 2**64 - 1]
REALS = [0.0, -0.0, 1.0, -1.0, 1.5, 2.5, -2.5, 0.1, -0.3, 3.0, 7.0, 1e-3, 12345.678, 1e10, -1e10, 1e20, 2.0**-126]
REALS += [2.0**-149, -(2.0**-140), 3.4028235e38, -3.4028235e38, math.inf, -math.inf, math.nan, 1 + 2.0**-23, 16777215.0]
MOVES = {"u32": "u32 %r", "s32": "u32 %r", "b32": "u32 %r", "f32": "f32 %f", "f64": "f64 %g"}
MOVES |= {"u64": "u64 %d", "s64": "u64 %d", "b64": "u64 %d", "u16": "u16 %h", "s16": "u16 %h", "b16": "u16 %h"}
BYTES = {kind: int(kind[1:]) // 8 for kind in MOVES}


def evaluated(instruction: str, kinds: tuple[str, ...], result: str, *columns: np.ndarray) -> np.ndarray:
    """``instruction`` with {0}, {1} ... for its sources and {d} for its result, one lane for each row."""
    names = [f"{MOVES[kind].split()[1]}{k + 1}" for k, kind in enumerate(kinds)]
    target = f"{MOVES[result].split()[1]}8"
    body = "mov.u32 %r9, %tid.x;"
    for k, (kind, name) in enumerate(zip(kinds, names, strict=True)):
        body += f"ld.param.u64 %d10, [p{k}]; mul.wide.u32 %d9, %r9, {BYTES[kind]}; add.s64 %d10, %d10, %d9;"
        body += f"ld.global.{MOVES[kind].split()[0]} {name}, [%d10];"
    body += instruction.format(*names, d=target) + ";"
    body += f"ld.param.u64 %d10, [p{len(kinds)}]; mul.wide.u32 %d9, %r9, {BYTES[result]}; add.s64 %d10, %d10, %d9;"
    body += f"st.global.{MOVES[result].split()[0]} [%d10], {target}; ret;"
    kind = {"f": f"float{8 * BYTES[result]}"}.get(result[0], f"uint{8 * BYTES[result]}")
    found = np.zeros(len(columns[0]), kind)
    ptx = handwritten(body, len(kinds) + 1, ".reg .b32 %rr<9>; .reg .pred %q<9>;")
    return launch(ptx, 1, len(found), *columns, found)[-1]


def rows(kinds: tuple[str, ...], count: int = 700) -> list[np.ndarray]:
    """Numbers of those kinds, the difficult ones often."""
    rng = np.random.default_rng(len(kinds))
    found = []
    for kind in kinds:
        if kind[0] == "f":
            wide = rng.normal(size=count) * 10.0 ** rng.integers(-12, 12, count)
            chosen = np.where(rng.random(count) < 0.5, rng.choice(REALS, count), wide)
            with np.errstate(all="ignore"):
                found.append(chosen.astype(f"float{8 * BYTES[kind]}"))
        else:
            bits = 8 * BYTES[kind]
            drawn = rng.integers(0, 2**64, count, np.uint64, endpoint=False)
            edges = rng.choice(np.array(LONG, np.uint64), count)
            found.append(np.where(rng.random(count) < 0.5, edges, drawn).astype(f"uint{bits}"))
    return found


def signed(x: int, bits: int) -> int:
    x &= 2**bits - 1
    return x - 2**bits if x >> (bits - 1) else x


def towards_zero(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def extracted(a: int, b: int, c: int, bits: int, negative: bool) -> int:
    start, length = b & 255, c & 255
    top = min(start + length - 1, bits - 1)
    sign = (a >> top) & 1 if negative and length else 0
    return sum((((a >> (start + k)) & 1) if k < length and start + k < bits else sign) << k for k in range(bits))


def inserted(a: int, b: int, c: int, d: int) -> int:
    for k in range(min(d & 255, max(0, 32 - (c & 255)))):
        place = (c & 255) + k
        b = (b & ~(1 << place)) | (((a >> k) & 1) << place)
    return b


def permuted(a: int, b: int, c: int) -> int:
    parts = [(a | b << 32) >> 8 * k & 255 for k in range(8)]
    found = 0
    for k in range(4):
        which = c >> 4 * k & 15
        byte = parts[which & 7]
        found |= ((255 if byte & 128 else 0) if which & 8 else byte) << 8 * k
    return found


def s32(f):
    return lambda *args: f(*(signed(x, 32) for x in args))


def s64(f):
    return lambda *args: f(*(signed(x, 64) for x in args))


WHOLE = {
    "add.s32 {d}, {0}, {1}": ("u32 u32 u32", lambda a, b: a + b),
    "sub.s64 {d}, {0}, {1}": ("u64 u64 u64", lambda a, b: a - b),
    "mul.lo.s32 {d}, {0}, {1}": ("u32 u32 u32", lambda a, b: a * b),
    "mul.lo.s64 {d}, {0}, {1}": ("u64 u64 u64", lambda a, b: a * b),
    "mul.hi.u32 {d}, {0}, {1}": ("u32 u32 u32", lambda a, b: a * b >> 32),
    "mul.hi.s32 {d}, {0}, {1}": ("u32 u32 u32", s32(lambda a, b: a * b >> 32)),
    "mul.hi.u64 {d}, {0}, {1}": ("u64 u64 u64", lambda a, b: a * b >> 64),
    "mul.hi.s64 {d}, {0}, {1}": ("u64 u64 u64", s64(lambda a, b: a * b >> 64)),
    "mul.wide.u32 {d}, {0}, {1}": ("u32 u32 u64", lambda a, b: a * b),
    "mul.wide.s32 {d}, {0}, {1}": ("u32 u32 u64", s32(lambda a, b: a * b)),
    "mul.wide.u16 {d}, {0}, {1}": ("u16 u16 u32", lambda a, b: a * b),
    "mad.lo.s32 {d}, {0}, {1}, {2}": ("u32 u32 u32 u32", lambda a, b, c: a * b + c),
    "mad.wide.u32 {d}, {0}, {1}, {2}": ("u32 u32 u64 u64", lambda a, b, c: a * b + c),
    "mad.hi.u32 {d}, {0}, {1}, {2}": ("u32 u32 u32 u32", lambda a, b, c: (a * b >> 32) + c),
    "add.sat.s32 {d}, {0}, {1}": ("u32 u32 u32", s32(lambda a, b: min(max(a + b, -(2**31)), 2**31 - 1))),
    "div.s32 {d}, {0}, {1}": ("u32 u32 u32", s32(lambda a, b: towards_zero(a, b) if b else None)),
    "div.u64 {d}, {0}, {1}": ("u64 u64 u64", lambda a, b: a // b if b else None),
    "div.s64 {d}, {0}, {1}": ("u64 u64 u64", s64(lambda a, b: towards_zero(a, b) if b else None)),
    "rem.s32 {d}, {0}, {1}": ("u32 u32 u32", s32(lambda a, b: a - b * towards_zero(a, b) if b else None)),
    "rem.u32 {d}, {0}, {1}": ("u32 u32 u32", lambda a, b: a % b if b else None),
    "rem.s64 {d}, {0}, {1}": ("u64 u64 u64", s64(lambda a, b: a - b * towards_zero(a, b) if b else None)),
    "min.s32 {d}, {0}, {1}": ("u32 u32 u32", s32(min)),
    "max.u64 {d}, {0}, {1}": ("u64 u64 u64", max),
    "abs.s32 {d}, {0}": ("u32 u32", s32(abs)),
    "neg.s64 {d}, {0}": ("u64 u64", lambda a: -a),
    "not.b32 {d}, {0}": ("u32 u32", lambda a: ~a),
    "xor.b64 {d}, {0}, {1}": ("u64 u64 u64", lambda a, b: a ^ b),
    "shl.b32 {d}, {0}, {1}": ("u32 u32 u32", lambda a, n: a << min(n, 32)),
    "shl.b64 {d}, {0}, {1}": ("u64 u32 u64", lambda a, n: a << min(n, 64)),
    "shr.u32 {d}, {0}, {1}": ("u32 u32 u32", lambda a, n: a >> min(n, 32)),
    "shr.s32 {d}, {0}, {1}": ("u32 u32 u32", lambda a, n: signed(a, 32) >> min(n, 32)),
    "shr.s64 {d}, {0}, {1}": ("u64 u32 u64", lambda a, n: signed(a, 64) >> min(n, 64)),
    "shr.u16 {d}, {0}, {1}": ("u16 u32 u16", lambda a, n: a >> min(n, 16)),
    "shf.l.wrap.b32 {d}, {0}, {1}, {2}": ("u32 u32 u32 u32", lambda a, b, n: ((b << 32 | a) << (n & 31)) >> 32),
    "shf.r.clamp.b32 {d}, {0}, {1}, {2}": ("u32 u32 u32 u32", lambda a, b, n: (b << 32 | a) >> min(n, 32)),
    "lop3.b32 {d}, {0}, {1}, {2}, 0xE8": ("u32 u32 u32 u32", lambda a, b, c: a & b | b & c | a & c),
    "bfe.u32 {d}, {0}, {1}, {2}": ("u32 u32 u32 u32", lambda a, b, c: extracted(a, b, c, 32, False)),
    "bfe.s32 {d}, {0}, {1}, {2}": ("u32 u32 u32 u32", lambda a, b, c: extracted(a, b, c, 32, True)),
    "bfe.u64 {d}, {0}, {1}, {2}": ("u64 u32 u32 u64", lambda a, b, c: extracted(a, b, c, 64, False)),
    "bfi.b32 {d}, {0}, {1}, {2}, {3}": ("u32 u32 u32 u32 u32", inserted),
    "prmt.b32 {d}, {0}, {1}, {2}": ("u32 u32 u32 u32", permuted),
    "popc.b64 {d}, {0}": ("u64 u32", int.bit_count),
    "clz.b32 {d}, {0}": ("u32 u32", lambda a: 32 - a.bit_length()),
    "clz.b64 {d}, {0}": ("u64 u32", lambda a: 64 - a.bit_length()),
    "brev.b32 {d}, {0}": ("u32 u32", lambda a: int(f"{a:032b}"[::-1], 2)),
    "bfind.u32 {d}, {0}": ("u32 u32", lambda a: a.bit_length() - 1),
    "bfind.s64 {d}, {0}": ("u64 u32", s64(lambda a: (~a if a < 0 else a).bit_length() - 1)),
    "cvt.s64.s32 {d}, {0}": ("u32 u64", s32(lambda a: a)),
    "cvt.u64.u32 {d}, {0}": ("u32 u64", lambda a: a),
    "cvt.u32.u64 {d}, {0}": ("u64 u32", lambda a: a),
    "cvt.s32.s8 {d}, {0}": ("u32 u32", lambda a: signed(a, 8)),
    "cvt.u16.u32 {d}, {0}": ("u32 u16", lambda a: a),
    "cvt.sat.s32.s64 {d}, {0}": ("u64 u32", s64(lambda a: min(max(a, -(2**31)), 2**31 - 1))),
    "cvt.sat.u32.s32 {d}, {0}": ("u32 u32", s32(lambda a: max(a, 0))),
    "add.cc.u32 %rr1, {0}, {1}; addc.u32 {d}, {0}, {1}": ("u32 u32 u32", lambda a, b: a + b + (a + b >> 32)),
    "sub.cc.u32 %rr1, {0}, {1}; subc.u32 {d}, {0}, {1}": ("u32 u32 u32", lambda a, b: a - b - (a < b)),
    "mad.lo.cc.u32 %rr1, {0}, {1}, {2}; madc.hi.u32 {d}, {0}, {1}, 0": (
        "u32 u32 u32 u32",
        lambda a, b, c: a * b + c >> 32,
    ),
    "mov.b64 {{%rr1, %rr2}}, {0}; mov.b64 {d}, {{%rr2, %rr1}}": ("u64 u64", lambda a: a >> 32 | a << 32),
    "setp.lt.s32 %q1, {0}, {1}; selp.b32 {d}, {0}, {1}, %q1": ("u32 u32 u32", s32(min)),
    "setp.hi.u32 %q1|%q2, {0}, {1}; selp.b32 {d}, {0}, {1}, %q2": ("u32 u32 u32", min),
    "setp.lt.u32 %q1, {0}, {1}; setp.ne.and.b32 %q2, {0}, 0, !%q1; selp.u32 {d}, 1, 0, %q2": (
        "u32 u32 u32",
        lambda a, b: int(a >= b and a != 0),
    ),
    "set.ge.u32.s32 {d}, {0}, {1}": ("u32 u32 u32", s32(lambda a, b: -int(a >= b))),
    "slct.b32.s32 {d}, {0}, {1}, {2}": ("u32 u32 u32 u32", lambda a, b, c: a if signed(c, 32) >= 0 else b),
    "{{ .reg .b32 t; add.u32 t, {0}, 1; mov.b32 {d}, t; }} {{ .reg .b64 t; mov.b64 t, 0; }} not.b32 {d}, {d}": (
        "u32 u32",
        lambda a: ~(a + 1),
    ),
    "mov.b32 {d}, {0}; setp.eq.u32 %q1, {0}, 1; @%q1 mov.b32 {d}, 77": ("u32 u32", lambda a: 77 if a == 1 else a),
}


@pytest.mark.parametrize("instruction", WHOLE)
def test_an_integer_instruction_is_its_definition(instruction):
    kinds, definition = WHOLE[instruction]
    *sources, result = kinds.split()
    columns = rows(tuple(sources))
    found = evaluated(instruction, tuple(sources), result, *columns)
    for row, value in zip(zip(*columns, strict=True), found, strict=True):
        want = definition(*map(int, row))
        if want is not None:  # a division by zero gives anything
            assert int(value) == want % 2 ** (8 * BYTES[result]), (row, instruction)


def nearest(exact: Fraction, kind: str, way: str = "rn") -> float:
    """`exact` as a float of that kind, by exact arithmetic."""
    bits, least, most = (24, -149, 128) if kind == "f32" else (53, -1074, 1024)
    if exact == 0:
        return 0.0
    size = abs(exact)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= size < Fraction(2) ** exponent
    place = max(exponent - bits + 1, least)
    scaled = exact / Fraction(2) ** place
    whole = {"rn": round, "rm": math.floor, "rp": math.ceil, "rz": math.trunc}[way](scaled)
    if abs(whole) * Fraction(2) ** place >= Fraction(2) ** most:
        return math.copysign(math.inf, whole)
    return math.copysign(math.ldexp(abs(whole), place), exact)


def fractions(f):
    return lambda *args: f(*map(Fraction, args))


REAL = {
    "add": fractions(lambda a, b: a + b),
    "sub": fractions(lambda a, b: a - b),
    "mul": fractions(lambda a, b: a * b),
    "div": fractions(lambda a, b: a / b if b else None),
    "fma": fractions(lambda a, b, c: a * b + c),
    "rcp": fractions(lambda a: 1 / a if a else None),
}


@pytest.mark.parametrize("kind", ["f32", "f64"])
@pytest.mark.parametrize("way", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("name", REAL)
def test_a_float_operation_rounds_once_and_as_it_says(name, way, kind):
    count = {"fma": 3, "rcp": 1}.get(name, 2)
    columns = rows((kind,) * count)
    if name == "fma":  # cancellation: c is close to -a * b
        with np.errstate(all="ignore"):
            columns[2] = np.where(np.arange(700) % 3 == 0, -columns[0] * columns[1], columns[2])
    operands = ", ".join(f"{{{k}}}" for k in range(count))
    found = evaluated(f"{name}.{way}.{kind} {{d}}, {operands}", (kind,) * count, kind, *columns)
    for row, value in zip(zip(*columns, strict=True), found, strict=True):
        if all(map(math.isfinite, row)):
            exact = REAL[name](*map(float, row))
            if exact is not None and math.isfinite(want := nearest(exact, kind, way)):
                assert float(value) == want, (row, name)


def f32_bits(x: float) -> int:
    return struct.unpack("<I", struct.pack("<f", x))[0]


@pytest.mark.parametrize("way", ["rn", "rz", "rm", "rp"])
def test_a_float64_becomes_the_float32_that_its_rounding_names(way):
    (column,) = rows(("f64",))
    found = evaluated(f"cvt.{way}.f32.f64 {{d}}, {{0}}", ("f64",), "f32", column)
    for x, value in zip(column, found, strict=True):
        if math.isfinite(x) and math.isfinite(want := nearest(Fraction(float(x)), "f32", way)):
            assert float(value) == want, x


ENDS = {"s32": (-(2**31), 2**31 - 1), "u32": (0, 2**32 - 1), "s64": (-(2**63), 2**63 - 1), "u64": (0, 2**64 - 1)}
TURNS = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}


@pytest.mark.parametrize("source", ["f32", "f64"])
@pytest.mark.parametrize("target", ENDS)
@pytest.mark.parametrize("way", TURNS)
def test_a_float_becomes_the_nearest_integer_that_fits(way, target, source):
    (column,) = rows((source,))
    found = evaluated(f"cvt.{way}.{target}.{source} {{d}}, {{0}}", (source,), target, column)
    low, high = ENDS[target]
    bits = 8 * BYTES[target]
    for x, value in zip(column, found, strict=True):
        if math.isnan(x):
            want = 0 if source == "f32" and bits == 32 else 2 ** (bits - 1)
        elif math.isinf(x):
            want = high if x > 0 else low
        else:
            want = min(max(TURNS[way](float(x)), low), high)
        assert int(value) == want % 2**bits, x


@pytest.mark.parametrize(
    ("instruction", "source", "target"),
    [("cvt.rn.f32.s32", "s32", "f32"), ("cvt.rn.f64.u64", "u64", "f64"), ("cvt.rn.f32.s64", "s64", "f32")],
)
def test_an_integer_becomes_the_nearest_float(instruction, source, target):
    (column,) = rows((source,))
    found = evaluated(f"{instruction} {{d}}, {{0}}", (source,), target, column)
    for x, value in zip(column, found, strict=True):
        whole = signed(int(x), 8 * BYTES[source]) if source[0] == "s" else int(x)
        assert float(value) == nearest(Fraction(whole), target), x


def test_extremes_pass_over_nan_and_order_the_zeros():
    a, b = rows(("f32", "f32"))
    for name, choose in (("min", min), ("max", max)):
        plain = evaluated(f"{name}.f32 {{d}}, {{0}}, {{1}}", ("f32", "f32"), "f32", a, b)
        strict = evaluated(f"{name}.NaN.f32 {{d}}, {{0}}, {{1}}", ("f32", "f32"), "f32", a, b)
        for x, y, found, other in zip(a, b, plain, strict, strict=True):
            real = [v for v in (x, y) if not math.isnan(v)]
            want = choose(real, key=lambda v: (v, math.copysign(1, v))) if real else math.nan
            assert f32_bits(found) == f32_bits(want) or (math.isnan(found) and math.isnan(want))
            if len(real) < 2:
                assert math.isnan(other)
            else:
                assert f32_bits(other) == f32_bits(want)


COMPARISONS = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}


@pytest.mark.parametrize("name", [*COMPARISONS, *(f"{name}u" for name in COMPARISONS), "num", "nan"])
def test_a_comparison_with_nan_is_false_unless_its_name_ends_with_u(name):
    a, b = rows(("f32", "f32"))
    found = evaluated(f"setp.{name}.f32 %q1, {{0}}, {{1}}; selp.u32 {{d}}, 1, 0, %q1", ("f32", "f32"), "u32", a, b)
    for x, y, value in zip(a, b, found, strict=True):
        missing = math.isnan(x) or math.isnan(y)
        if name in ("num", "nan"):
            assert value == (missing == (name == "nan"))
        else:
            assert value == (len(name) == 3 if missing else COMPARISONS[name[:2]](x, y))


@pytest.mark.parametrize("name", ["add", "mul"])
def test_ftz_flushes_operands_and_results(name):
    a, b = rows(("f32", "f32"))
    found = evaluated(f"{name}.ftz.f32 {{d}}, {{0}}, {{1}}", ("f32", "f32"), "f32", a, b)
    assert not np.any((np.abs(found) < 2.0**-126) & (found != 0))
    small = np.abs(a) < 2.0**-126
    with np.errstate(all="ignore"):
        want = b[small] if name == "add" else 0 * b[small]
        np.testing.assert_array_equal(found[small], np.where(np.abs(want) < 2.0**-126, 0 * want, want))


def test_sat_clips_to_the_unit_interval():
    a, b = rows(("f32", "f32"))
    found = evaluated("add.sat.f32 {d}, {0}, {1}", ("f32", "f32"), "f32", a, b)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(found, np.clip(np.nan_to_num(a + b, nan=0.0, posinf=2.0, neginf=-2.0), 0, 1))


def test_bfloat16_rounds_to_even_and_back():
    torch = pytest.importorskip("torch")
    (a,) = rows(("f32",))
    found = evaluated("cvt.rn.bf16.f32 {d}, {0}", ("f32",), "u16", a)
    want = torch.from_numpy(a).to(torch.bfloat16)
    real = ~np.isnan(a)
    np.testing.assert_array_equal(found[real], want.view(torch.int16).numpy().view(np.uint16)[real])
    back = evaluated("cvt.f32.bf16 {d}, {0}", ("u16",), "f32", found)
    np.testing.assert_array_equal(back, want.to(torch.float32).numpy())
    pair = evaluated("cvt.rn.bf16x2.f32 {d}, {0}, {1}", ("f32", "f32"), "u32", a, a[::-1].copy())
    np.testing.assert_array_equal(pair, found.astype(np.uint32) << 16 | found[::-1])


@pytest.mark.parametrize(
    ("instruction", "function", "ulps"),
    [
        ("ex2.approx.f32", np.exp2, 2),
        ("lg2.approx.f32", np.log2, 2),
        ("sin.approx.f32", np.sin, 2),
        ("rsqrt.approx.f32", lambda x: 1 / np.sqrt(x), 2),
        ("sqrt.rn.f32", np.sqrt, 0.5),
        ("tanh.approx.f32", np.tanh, 1),
    ],
)
def test_an_approximation_is_at_least_as_good_as_the_hardwares(instruction, function, ulps):
    x = np.random.default_rng(0).uniform(0.01, 20, 300).astype(np.float32)
    found = evaluated(f"{instruction} {{d}}, {{0}}", ("f32",), "f32", x)
    want = function(x.astype(np.float64))
    assert np.max(np.abs(found - want) / np.spacing(np.abs(want).astype(np.float32))) <= ulps


def test_the_coarse_reciprocal_of_a_float64_needs_newtons_steps():
    x = np.random.default_rng(0).uniform(0.01, 20, 300)
    found = evaluated("rcp.approx.ftz.f64 {d}, {0}", ("f64",), "f64", x)
    error = np.abs(found * x - 1)
    assert 1e-12 < error.max() < 2.0**-19


TILES = [("m16n8k4", "tf32", 4), ("m16n8k8", "tf32", 8), ("m16n8k8", "bf16", 8), ("m16n8k16", "bf16", 16)]


@pytest.mark.parametrize(("shape", "kind", "depth"), TILES)
def test_a_warps_product_of_matrices_is_one(shape, kind, depth):
    """Each lane gets its elements by the tables of the PTX ISA, written out here as they stand there."""
    rng = np.random.default_rng(depth)
    a, b, c = (rng.integers(-8, 8, s).astype(np.float32) for s in ((2, 16, depth), (2, depth, 8), (2, 16, 8)))
    lane = np.arange(64)
    warp, group, within = lane // 32, lane % 32 // 4, lane % 4
    rows, columns = [group, group, group + 8, group + 8], [2 * within, 2 * within + 1] * 2
    if kind == "tf32":
        count = depth // 4
        left = [a[warp, group + 8 * (i % 2), within + 4 * (i // 2)].view(np.uint32) for i in range(2 * count)]
        right = [b[warp, within + 4 * i, group].view(np.uint32) for i in range(count)]
    else:
        count = depth // 8
        bits = lambda x: (x.view(np.uint32) >> 16).astype(np.uint32)  # noqa: E731
        pair = lambda x, y: bits(x) | bits(y) << 16  # noqa: E731
        at = [(group + 8 * (i % 2), 2 * within + 8 * (i // 2)) for i in range(2 * count)]
        left = [pair(a[warp, r, k], a[warp, r, k + 1]) for r, k in at]
        right = [pair(b[warp, 2 * within + 8 * i, group], b[warp, 2 * within + 8 * i + 1, group]) for i in range(count)]
    sums = [c[warp, r, k] for r, k in zip(rows, columns, strict=True)]
    inputs = np.stack([x.view(np.uint32) for x in (*left, *right, *sums)], axis=1)
    names = [f"%r{i + 1}" for i in range(3 * count)]
    body = "ld.param.u64 %d1, [p0]; ld.param.u64 %d2, [p1]; mov.u32 %r18, %tid.x;"
    body += f"mul.wide.u32 %d3, %r18, {4 * inputs.shape[1]}; add.s64 %d1, %d1, %d3; mul.wide.u32 %d3, %r18, 16;"
    body += "add.s64 %d2, %d2, %d3;"
    body += "".join(f"ld.global.u32 {name}, [%d1+{4 * i}];" for i, name in enumerate(names))
    body += "".join(f"ld.global.f32 %f{i + 1}, [%d1+{4 * (3 * count + i)}];" for i in range(4))
    sources = ", ".join(f"{{{', '.join(part)}}}" for part in (names[: 2 * count], names[2 * count :]))
    kinds = f"{shape}.row.col.f32.{kind}.{kind}.f32"
    body += f"mma.sync.aligned.{kinds} {{%f5, %f6, %f7, %f8}}, {sources}, {{%f1, %f2, %f3, %f4}};"
    ptx = handwritten(body + "st.global.v4.f32 [%d2], {%f5, %f6, %f7, %f8}; ret;", 2)
    found = launch(ptx, 1, 64, inputs, np.zeros((64, 4), np.float32))[1]
    want = a @ b + c
    for k, (r, column) in enumerate(zip(rows, columns, strict=True)):
        np.testing.assert_array_equal(found[:, k], want[warp, r, column])
