"""Derivatives of formulas, as formulas: `vjp` and `jvp` of one, `backward` of a whole graph."""

from chainrule.derive.backward import Derivation, backward
from chainrule.derive.gradients import expand_gradient
from chainrule.derive.jvp import jvp
from chainrule.derive.vjp import fresh_axes, other_terms, vjp

__all__ = ["Derivation", "backward", "expand_gradient", "fresh_axes", "jvp", "other_terms", "vjp"]
