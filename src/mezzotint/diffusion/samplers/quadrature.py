"""How much each remembered value counts: Lagrange's polynomials averaged over the step.

A multistep method lays a polynomial through the values it has seen, and the polynomial's mean over the step
to come stands for the unknown. Let y run from 0 to 1 over the step, so that the past lies at y < 0. The exact
solution of a linear equation asks for the mean under an exponential weight:

    w_j = int_0^1 exp(-decay (1 - y)) L_j(y) dy / int_0^1 exp(-decay (1 - y)) dy,    sum_j w_j = 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def averages(nodes: Sequence[float], decay: float = 0.0, curvature: float = 1.0) -> list[float]:
    """The weights w_j of distinct `nodes`, on the scale where the step is [0, 1]; exact on any grid.

    decay = 0 at the nodes 0, -1, -2, ... gives the coefficients of Adams and Bashforth. `curvature` scales
    the polynomial's quadratic term.
    """
    powers = moments(len(nodes), decay)
    powers[2:3] = [curvature * m for m in powers[2:3]]
    return [sum(a * m for a, m in zip(lagrange(nodes, j), powers, strict=True)) for j in range(len(nodes))]


def at_middle(nodes: Sequence[float]) -> list[float]:
    """The weights that take the polynomial's value at y = 1/2 for its mean: the midpoint rule."""
    return [sum(a * 0.5**k for k, a in enumerate(lagrange(nodes, j))) for j in range(len(nodes))]


def moments(count: int, decay: float) -> list[float]:
    """The weighted means over [0, 1] of 1, y, y^2, ... up to y^(count - 1)."""
    if abs(decay) < 1:  # the recursion below would lose digits: integrate the weight's power series by terms
        mu = [
            math.fsum((-decay) ** n * math.factorial(k) / math.factorial(n + k + 1) for n in range(18))
            for k in range(count)
        ]
    else:
        mu = [-math.expm1(-decay) / decay]
        for k in range(1, count):
            mu.append((1 - k * mu[-1]) / decay)  # by parts
    return [m / mu[0] for m in mu]


def lagrange(nodes: Sequence[float], j: int) -> list[float]:
    """L_j, which is 1 at node j and 0 at the others, as coefficients of 1, y, y^2, ..."""
    polynomial = [1.0]
    for k, node in enumerate(nodes):
        if k != j:  # times (y - node) / (nodes[j] - node)
            shifted = zip([0.0, *polynomial], [*polynomial, 0.0], strict=True)
            polynomial = [(a - node * b) / (nodes[j] - node) for a, b in shifted]
    return polynomial
