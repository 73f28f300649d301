"""The stated rules of primitives: what a node that is no formula sends to the cotangents of what it reads.

``fixed_point`` alone has one; draws pass nothing on, and ``gradient`` has become formulas (`derive.gradients`).
"""

from __future__ import annotations

from chainrule.ir.formula import Origin
from chainrule.ir.primitive import Primitive


def adjoint(node: Primitive, u: str, again: str) -> Primitive:
    """The cotangent of a fixed point z = f(z, θ), by the implicit function theorem.

    dz = J dz + ∂f/∂θ dθ with J = ∂f/∂z, so that z_bar · dz = u · ∂f/∂θ dθ where

        u = z_bar + Jᵀ u

    is a fixed point itself, of the same limits, from 0. All of u is sent to z.next = f(z, θ); what f's formulas send
    on to z is Jᵀ u, and with z_bar it is `again`: reverse mode around the circle, to any order.
    Source: Bai, Kolter and Koltun 2019, arXiv:1909.01377, theorem 1.
    """
    origin = Origin(formula=node.out, rule="vjp", layer=node.origin.layer)
    return Primitive(
        "fixed_point", u, node.shape, (again,), within=node.within, steps=node.steps, origin=origin
    )  # fmt: skip
