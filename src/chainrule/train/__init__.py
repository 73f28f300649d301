"""Training around a compiled step: data by name, recipes, the loop, checkpoints, the curve's picture.

Nothing here imports the compiler, and nothing heavier than NumPy.
"""

from chainrule.train.checkpoint import Checkpoint, Epoch, Record
from chainrule.train.loop import Progress, Step, train
from chainrule.train.measures import evaluate
from chainrule.train.recipe import Recipe
from chainrule.train.samples import Data

__all__ = ["Checkpoint", "Data", "Epoch", "Progress", "Recipe", "Record", "Step", "evaluate", "train"]
