"""Feasible regions of Frank-Wolfe methods, and which region each parameter of a network gets."""

from constraints.build import CONSTRAINTS, MODES, build_constraints, gauges, make_feasible
from constraints.k_sparse import KSparsePolytope
from constraints.lp_ball import LpBall
from constraints.region import GradientVertex, Region, SignVertex, Unconstrained

__all__ = [
    "CONSTRAINTS",
    "MODES",
    "GradientVertex",
    "KSparsePolytope",
    "LpBall",
    "Region",
    "SignVertex",
    "Unconstrained",
    "build_constraints",
    "gauges",
    "make_feasible",
]
