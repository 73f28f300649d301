"""A compiled step by hand, for the tests of what is around one: softmax regression with momentum."""

from __future__ import annotations

import numpy as np


def one_by_one(step, steps, scalars, batches):
    """What `run` of a step does, by calls."""
    losses = []
    for k in range(steps):
        step.scalars.update({name: values[k] for name, values in scalars.items()})
        losses.append(step(**{name: array[k] for name, array in batches.items()}))
    return np.array(losses)


class Regression:
    """``z = x W``, mean cross-entropy, momentum 0.9; `params`, `states`, `scalars`, `steps` as of every step."""

    def __init__(self, inputs=2, classes=2):
        self.params = {"z.W": np.zeros((inputs, classes))}
        self.states = {"z.W.m": np.zeros((inputs, classes))}
        self.scalars = {"rate": 0.1}
        self.steps = 0
        self.rates = []
        self.calls = []  # steps of each call of `run`

    def __call__(self, *, x, label):
        p, loss = self.judged(x, label)
        p[np.arange(len(label)), label] -= 1
        self.states["z.W.m"] = 0.9 * self.states["z.W.m"] + x.T @ p / len(label)
        self.params["z.W"] = self.params["z.W"] - self.scalars["rate"] * self.states["z.W.m"]
        self.rates.append(self.scalars["rate"])
        self.steps += 1
        return np.float32(loss)

    def run(self, steps, scalars, /, **batches):
        self.calls.append(steps)
        return one_by_one(self, steps, scalars, batches)

    def predict(self, *, outputs, x, label):
        p, loss = self.judged(x, label)
        found = {"loss": loss, "accuracy": np.mean(p.argmax(1) == label), "p": p}
        return {name: np.asarray(found[name]) for name in outputs}

    def judged(self, x, label):
        z = x @ self.params["z.W"]
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        return p, -np.mean(np.log(p[np.arange(len(label)), label]))
