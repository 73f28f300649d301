"""Second derivatives: Newton's method on a network's last layer, with its Hessian: `python examples/hessian.py`."""

import numpy as np

import chainrule as cr
from chainrule.train import data

digits = data.load("digits")
x_train, label_train = digits.train["x"][:400], digits.train["label"][:400]

# Logistic regression of one digit against the others: convex, so Newton's method needs a few steps only.
batch = cr.dim("batch")
x = cr.input("x", [batch, 64])
t = cr.input("t", [batch])
v = cr.input("v", [64])
w = cr.param("w", [64], "zeros")
z = cr.formula("z[n] = sum[i] x[n, i] * w[i]", x=x, w=w)
loss = cr.mean(cr.binary_cross_entropy(z, t)) + 0.001 * cr.sum(w**2)

# A gradient is a tensor like any other: g · v has a gradient too, the Hessian times v.
g = cr.gradient(loss, w, name="g")
Hv = cr.gradient(cr.sum(g * v), w, name="Hv")
model = cr.Model(loss, g=g, Hv=Hv)
given = {"x": x_train, "t": (label_train == 3).astype(float)}


def look(outputs, **more):
    return model.predict(outputs=outputs, dtype="float64", **given, **more)


def solve(b, steps=40):
    """The p with H p = b by conjugate gradients, which needs H only as H times a vector."""
    p, r = np.zeros_like(b), b.copy()
    d = r.copy()
    for _ in range(steps):
        Hd = look(["Hv"], v=d)["Hv"]
        a = (r @ r) / (d @ Hd)
        p, new = p + a * d, r - a * Hd
        d, r = new + (new @ new) / (r @ r) * d, new
        if r @ r < 1e-20:
            break
    return p


params = model.store("float64").params
for k in range(9):
    found = look(["loss", "g"])
    norm = np.linalg.norm(found["g"])
    print(f"step {k}: loss {found['loss']:.6f}, |gradient| {norm:.1e}")
    params["w"] = params["w"] - solve(found["g"])
assert np.linalg.norm(look(["g"])["g"]) < 1e-8
