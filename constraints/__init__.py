"""Feasible regions of Frank-Wolfe methods, and which region each parameter of a network gets."""

from constraints.assign import CONSTRAINTS, MODES, build_constraints, gauges, make_feasible
from constraints.k_sparse import KSparsePolytope
from constraints.lp_ball import LpBall
from constraints.region import Region, Unconstrained

__all__ = [
    "CONSTRAINTS",
    "MODES",
    "KSparsePolytope",
    "LpBall",
    "Region",
    "Unconstrained",
    "build_constraints",
    "gauges",
    "make_feasible",
]
