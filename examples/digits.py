"""Handwritten digits, with the network written in Python: `python examples/digits.py`."""

import numpy as np

import chainrule as cr
from chainrule.train import data

EPOCHS, BATCH = 20, 32

digits = data.load("digits")

# The network: each call records one line of mathematics.
batch = cr.dim("batch")
x = cr.input("x", [batch, 64])
label = cr.input("label", [batch], index=10)
h = cr.relu(cr.linear(x, 64), name="h")
logits = cr.linear(h, 10, name="logits")
loss = cr.mean(cr.cross_entropy(logits, label))
hit = cr.formula("hit[n] = argmax[k] logits[n, k] == label[n]", logits=logits, label=label)
model = cr.Model(loss, accuracy=cr.mean(hit))

# A step is forward, backward and update in one call.
step = model.compile("adamw", rate=0.005, decay=0.1, seed=0)

for epoch in range(EPOCHS):
    for chosen in data.batches(digits.train, BATCH, data.shuffled(digits.train, seed=0, epoch=epoch)):
        last = step(**chosen)
    if epoch % 5 == 4:
        print(f"epoch {epoch + 1:2}: loss {last:.4f}")

accuracy = step.predict(outputs=["accuracy"], **digits.test)["accuracy"]
print(f"test accuracy {accuracy:.3f}")
assert accuracy > 0.95

# Gradients are a plain function: here, which pixels a prediction depends on.
sensitive = cr.grad(model, wrt=["x"])(step.params, **{name: values[:1] for name, values in digits.test.items()})
strongest = np.abs(sensitive["x"][0]).reshape(8, 8)
print(f"the most sensitive pixel is {np.unravel_index(strongest.argmax(), (8, 8))}")
