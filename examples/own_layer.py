"""A layer of one's own, in a few lines of text, with its derived gradients checked: `python examples/own_layer.py`."""

from pathlib import Path

import numpy as np

import chainrule as cr
from chainrule.train import data

digits = data.load("digits")
model = cr.load(Path(__file__).with_name("swiglu.graph"), width=48)
some = {name: values[:64] for name, values in digits.train.items()}

# One derived gradient against a central difference, in float64.
f = cr.value_and_grad(model, dtype="float64")
params = dict(model.store("float64").params)
loss, gradients = f(params, **some)
name, place, h = "logits.swiglu.W", (20, 3), 1e-6
up, down = params[name].copy(), params[name].copy()
up[place] += h
down[place] -= h
difference = (f({**params, name: up}, **some)[0] - f({**params, name: down}, **some)[0]) / (2 * h)
print(f"derived {gradients[name][place]:.10f}, by differences {difference:.10f}")
assert np.isclose(gradients[name][place], difference, rtol=1e-5, atol=1e-9)

step = model.compile("adam", rate=0.003, seed=0)
for epoch in range(10):
    for chosen in data.batches(digits.train, 32, data.shuffled(digits.train, seed=0, epoch=epoch)):
        step(**chosen)
accuracy = step.predict(outputs=["accuracy"], **digits.test)["accuracy"]
print(f"test accuracy {accuracy:.3f}")
assert accuracy > 0.93
