"""Good models, and what goes wrong when people type: mutations of their tokens."""

from __future__ import annotations

import random
import re

GOOD = {
    "perceptron": """
model mlp(hidden = 12):
    dim batch
    input x[batch, 64]
    input label[batch] : index 10        # values 0 … 9
    h      = relu(linear(x, hidden))
    logits = linear(h, 10)
    loss   = mean(cross_entropy(logits, label))
    output accuracy = mean(argmax[k] logits[*, k] == label[*])
""",
    "image": """
model c:
    dim n, h >= 3, w >= 3
    input x[n, 3, h, w]
    y = conv2d(x, 8, stride = 2, pad = 1)
    z = relu(batch_norm(y))
    d = dropout(z)
    loss = mean(d)
""",
    "nodes": """
layer gcn(x[v, i], source[e], target[e], out):
    param W[i, out] ~ glorot_uniform
    degree[v] = sum[e where target[e] == v] 1
    m[v, i]   = sum[e where target[e] == v] x[source[e], i] / sqrt(degree[source[e]] * degree[v])
    y[v, o]   = sum[i] m[v, i] * W[i, o]
fn upsample(y[*, h], stride = 2):
    x[*, p < stride*h] = y[*, p // stride] where p % stride == 0
model g(k = 2):
    dim nodes, edges
    input x[nodes, 8]
    input s[edges] : index nodes
    input t[edges] : index nodes
    h = relu(gcn(x, s, t, 4))
    u = upsample(h, k)
    z = upsample(x)
    loss = mean(u) + mean(abs(z))
    output big[v] : bool = any[k] h[v, k] > 0.5
    output c[v] : int = sum[k] h[v, k] > 0.5
    output e[v] = float(c[v]) * 2
""",
    "words": """
model gpt(vocab = 9, width = 8, depth = 2):
    dim batch, time <= 256
    input token[batch, time] : index vocab
    input next[batch, time]  : index vocab
    param P[256, width] ~ normal(0.02)
    x[b, t < time, c] = embedding(token, vocab, width)[b, t, c] + P[t, c]
    repeat depth:
        x = x + multi_head(layer_norm(x), heads = 4)
        x = x + linear(gelu(linear(layer_norm(x), 4*width)), width)
    logits = linear(layer_norm(x), vocab)
    loss   = mean(cross_entropy(logits, next))
""",
    "everything": """
model s:
    dim n >= 2
    input x[n, 4]
    state r[4] = 0.5
    scalar rate = 0.25
    let c = sqrt(2) * 3 - 1/4
    random e[i < n, j < 4] ~ normal(0.5)
    r[j] <- r[j] * 0.9 + 0.1 * mean[i] x[i, j]
    d[i < n - 1, j] = x[i + 1, j] - x[i, j] + c * r[j]
    w[i < n, j] = clip(d[i - 1, j; 0], -1, 1)^2 where i > 0 and not j == 2
    stop m[j] = max[i < n] x[i, j] * e[i, j]
    a[i] : index 4 = argmax[j] x[i, j]
    v = (if mean(w) > rate then log(1 + exp(sum(w))) else tanh(mean(x) // 2)) + m[a[0]]
    let f = linear(_, 4)
    repeat 2 as turn:
        x = f(x) + turn
    loss = v + sum[j] m[j] * x[n - 1, (j + 1) % 4]
    g = gradient(loss, f.W)
""",
}

TOKEN = re.compile(r"\n[ ]*|[A-Za-z_][\w.]*|\d+\.?\d*(?:e-?\d+)?|<-|//|==|<=|>=|!=|.", re.DOTALL)
_STRANGE_WORDS = """
    sum [ ] ( ) * / // % ^ - < if then else where ; 0 1 3 64 1e-5 inf nan true training size mean argmax x y i n batch
    ~ <- = == : index float int max exp log sqrt _ repeat stop output param let dim norm gradient linear relu softmax
    gradients lgamma polygamma 1e400 99999999999999999999 not and or any é λ @ $ ! ' # .
"""
STRANGERS = [*_STRANGE_WORDS.split(), *'\x00\r\t\u2028\x1b\\"', "\n    ", "\n        ", "\n"]


def mutated(seed: int) -> str:
    """A good model with one to three tokens deleted, doubled, exchanged or replaced, or cut off."""
    draw = random.Random(seed)
    tokens = TOKEN.findall(draw.choice(list(GOOD.values())))
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        at = draw.randrange(len(tokens))
        match draw.randrange(7):
            case 0:
                del tokens[at]
            case 1:
                tokens.insert(at, tokens[at])
            case 2:
                other = draw.randrange(len(tokens))
                tokens[at], tokens[other] = tokens[other], tokens[at]
            case 3:
                tokens[at] = draw.choice(STRANGERS)
            case 4:
                tokens.insert(at, draw.choice(STRANGERS))
            case 5:
                tokens[at] = draw.choice(tokens)
            case _:
                tokens = tokens[: at + 1]
        if not tokens:
            return ""
    return "".join(tokens)
