"""Kernels in the standard forms, as generated source reads, for the tests of what becomes of it."""

from __future__ import annotations

from chainrule.codegen.cuda.objects import Job, Pointer, Size

F, D, I, B, SIZE = Pointer("float32"), Pointer("float64"), Pointer("int64"), Pointer("bool"), Size()

MAP = Job(
    '''
def hidden(z, b, h, batch, scratch):
    """h[n, j] = tanh(z[n, j] + b[j])"""
    for flat in range(block() * 256 + thread(), batch * 64, blocks() * 256):
        n = divide(flat, 64)
        j = modulo(flat, 64)
        h[n * 64 + j] = tanh(z[n * 64 + j] + b[j])  # graphs/mlp.graph:9
''',
    "hidden",
    (F, F, F, SIZE, SIZE),
)

WIDE = Job(
    '''
def scaled(x, y, count, scratch):
    """y[n] = max(exp(x[n]) / 2, 0)"""
    for quad in range(block() * 256 + thread(), divide(count, 4), blocks() * 256):
        a, b, c, d = load4(x, quad * 4)
        half, zero = float32(0.5), float32(0.0)
        store4(y, quad * 4, max(exp(a) * half, zero), max(exp(b) * half, zero), exp(c) * half, exp(d) * half)
''',
    "scaled",
    (F, F, SIZE, SIZE),
)

ROWS = Job(
    '''
def softmax(x, y, rows, scratch):
    """y[r, k] = exp(x[r, k] - m[r]) / sum[k] exp(x[r, k] - m[r]), m[r] = max[k] x[r, k]; one warp for a row"""
    for r in range(block() * 8 + warp(), rows, blocks() * 8):
        row = local_float32(8)
        m = float32(-inf)
        for k in range(2):
            at = r * 256 + k * 128 + lane() * 4
            a, b, c, d = load4(x, at)
            row[k * 4] = a
            row[k * 4 + 1] = b
            row[k * 4 + 2] = c
            row[k * 4 + 3] = d
            m = max(max(max(max(m, a), b), c), d)
        m = warp_max(m)
        s = float32(0.0)
        for k in range(8):
            row[k] = exp(row[k] - m)
            s = s + row[k]
        s = float32(1.0) / warp_sum(s)
        for k in range(2):
            at = r * 256 + k * 128 + lane() * 4
            store4(y, at, row[k * 4] * s, row[k * 4 + 1] * s, row[k * 4 + 2] * s, row[k * 4 + 3] * s)
''',
    "softmax",
    (F, F, SIZE, SIZE),
)

TOTALS = Job(
    '''
def total(x, y, count, scratch):
    """y[n] = sum[k] x[n, k], one block for a row"""
    s = float32(0.0)
    for k in range(thread(), count, 256):
        s = s + x[block() * count + k]
    s = block_sum(s, 8)
    if thread() == 0:
        y[block()] = s
''',
    "total",
    (F, F, SIZE, SIZE),
)

STANDARD = {"map": MAP, "wide": WIDE, "rows": ROWS, "totals": TOTALS}


def at_each(value: str, reads: int = 1, source: str = "float32", target: str = "float32") -> Job:
    """``y[i] = value`` of a = x[i], b = x[i + n], c = x[i + 2 n], one thread for each i < n."""
    names = "".join(f"        {name} = x[i + {k} * n]\n" for k, name in enumerate("abc"[:reads]))
    head = "def each(x, y, n, scratch):\n    i = block() * 256 + thread()\n    if i < n:\n"
    return Job(f"{head}{names}        y[i] = {value}\n", "each", (Pointer(source), Pointer(target), SIZE, SIZE))
