"""``python -m tests.references NAME``: a recipe of graphs/ trained in PyTorch, its figure as a line of JSON.

Data, batches, schedule, optimizer and initial weights are those of ``chainrule train graphs/NAME.toml``; draws
(dropout, noise) are PyTorch's. ``--agree 50`` instead takes so many steps here and there, in float64 and with the same
draws.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import msgspec
import torch

from chainrule.source import Argument
from tests.references import training, twins, weights
from tests.references.agreement import compared


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.references", description=__doc__)
    parser.add_argument("name", choices=twins.TWINS, metavar="NAME", help=", ".join(twins.TWINS))
    parser.add_argument("--quick", action="store_true", help="as `chainrule train --quick` has it")
    parser.add_argument("--set", metavar="NAME=NUMBER", action="append", default=[], help="an argument of the model")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--limit", type=int, help="so many samples of each part at most")
    parser.add_argument("--seed", type=int, help="instead of the recipe's")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    parser.add_argument("--agree", type=int, metavar="STEPS", help="compare so many steps")
    parser.add_argument("--init", choices=("chainrule", "torch"), default="chainrule", help="whose initial weights")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    begun = time.perf_counter()
    found = agreed(asked) if asked.agree else trained(asked)
    versions = {"torch": torch.__version__, "threads": asked.threads}
    print(json.dumps({"model": asked.name, **found, **versions, "seconds": round(time.perf_counter() - begun, 3)}))
    return 0


def given_arguments(asked: argparse.Namespace) -> dict[str, Argument]:
    """What --set says."""
    pairs = (text.partition("=") for text in asked.set)
    return {name: float(value) if "." in value else int(value) for name, _, value in pairs}


def agreed(asked: argparse.Namespace) -> dict[str, Any]:
    """How far losses and stores are apart after some steps."""
    found = compared(asked.name, asked.agree, asked.quick, given_arguments(asked), asked.limit)
    told = {"steps": asked.agree, "losses_apart": found.losses_apart, "stores_apart": found.stores_apart}
    return {**told, "first": found.ours[0], "last": found.ours[-1]}


def trained(asked: argparse.Namespace) -> dict[str, Any]:
    """The recipe's figure."""
    how, given, model = training.prepared(asked.name, asked.quick, given_arguments(asked), asked.limit)
    changes = {"epochs": asked.epochs, "seed": asked.seed}
    how = msgspec.structs.replace(how, **{name: value for name, value in changes.items() if value is not None})
    torch.manual_seed(how.seed)
    twin = weights.twin(asked.name, how.set, torch.float32)
    if asked.init == "chainrule":
        model.store().restart(how.seed)
        weights.begin(asked.name, twin, {**model.params, **model.store().states})
    run = training.begun(twin, how, torch.float32)
    each = training.steps_an_epoch(how, given)

    def watch(epoch: int, loss: float) -> None:
        print(f"epoch {epoch} of {how.epochs}, {each} steps: loss {loss:.4g}", file=sys.stderr, flush=True)

    found = training.train(run, given, watch)
    count = sum(p.numel() for p in twin.parameters() if p.requires_grad)
    return {**found, "data": given.name, "seed": how.seed, "init": asked.init, "parameters": count}


if __name__ == "__main__":
    sys.exit(main())
