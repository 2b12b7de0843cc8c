"""What a case of the hunt is, and the kernels of its program by recursion over layers and products over coordinates."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from hunt_functions import Made
from hunt_points import Function
from hunt_truths import Covariance, mean, pair


@dataclass
class Case:
    """A program and a question.

    `form`: "chain", layers g = W s + b, s = f(g) (the last one beside `residual` times the one before); "several", f of
    products of the input with one matrix each; "moment", E f of these; "scaled", a layer times the moment of another.
    `ask`: "kernels", "nngp", "limit", "slope" (the NNGP's derivative in the first weight's variance) or "slopes" (the
    NTK's too). `truth`: by kernel the values, their errors, and natural scales.
    """

    kind: str
    seed: int
    form: str
    ask: str
    functions: list[str]
    variances: list[float]
    x: list[list[float]]
    dtype: str = "float64"
    biases: list[float] = field(default_factory=list)
    residual: float = 0.0
    error: bool = False
    cross: bool = False
    truth: dict[str, Any] | None = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.kind} {self.seed}"

    @property
    def inputs(self) -> np.ndarray:
        return np.array(self.x).astype(self.dtype)


def covariance(x: np.ndarray, y: np.ndarray, var: float, bias: float = 0.0) -> Covariance:
    """Of the first layer's Gaussians; the determinant from cross product and distance, which do not cancel."""
    x, y = x.astype(float), y.astype(float)
    half = var / 2
    cross = half * (x[0] * y[1] - x[1] * y[0])
    determinant = cross**2 + bias * half * ((x - y) ** 2).sum()
    return Covariance(half * (x @ x) + bias, half * (y @ y) + bias, half * (x @ y) + bias, determinant)


# ---- truths: (value, error) of kernels of two inputs

Numbers = dict[str, tuple[float, ...]]


def layers(case: Case, x: np.ndarray, y: np.ndarray, slopes: bool) -> Numbers:
    """The recursion of a chain: covariances, and the NTK's S·T beside them, layer by layer."""
    biases = case.biases or [0.0] * len(case.functions)
    cov = covariance(x, y, case.variances[0], biases[0])
    tangent, error, tangent_error = cov.cross, 0.0, 0.0
    chain: list[tuple[float, float, list[float]]] = []  # a layer's K, its S·T, and the means of its two sides
    for k, f in enumerate(case.functions):
        found = pair([f], [f], cov, slopes)
        value, slope = float(found.value[0, 0]), float(found.slope[0, 0])
        error = 3 * error + float(found.value_error[0, 0])
        tangent_error = 3 * tangent_error + float(found.slope_error[0, 0]) * abs(tangent) + error
        sames = (cov.first, cov.second)
        means = [float(mean(Function(f), q)[0][0]) for q in sames] if case.residual else [0.0, 0.0]
        chain.append((value, slope * tangent, means))
        if k + 1 < len(case.functions):
            var, bias = case.variances[k + 1], biases[k + 1]
            alone = [float(pair([f], [f], Covariance(q, q, q, 0.0), False).value[0, 0]) for q in sames]
            one, two = (var * a + bias for a in alone)
            cross = var * value + bias
            tangent = cross + var * slope * tangent
            cov = Covariance(one, two, cross, 0.0 if (x == y).all() else one * two - cross**2)
    value, learned, means = chain[-1]
    if case.residual:  # f(g) + residual · s: g is independent of s, and both have means
        other, more, below = chain[-2]
        value += case.residual**2 * other + case.residual * (below[0] * means[1] + below[1] * means[0])
        learned += case.residual**2 * more
    return {"nngp": (value, error), "ntk": (value + learned, tangent_error)}


def products(case: Case, made: Made, x: np.ndarray, y: np.ndarray) -> Numbers:
    """Σ_rs Π_k of expectations in each coordinate; of the NTK one slope at a time."""
    covs = [covariance(x, y, var) for var in case.variances]
    found = [pair([t[k] for t in made.terms], [t[k] for t in made.terms], c) for k, c in enumerate(covs)]
    value = math_product([f.value for f in found])
    error = sum_of_errors([f.value for f in found], [f.value_error for f in found])
    ntk, ntk_error = value, error
    for k, c in enumerate(covs):
        factors = [f.slope if i == k else f.value for i, f in enumerate(found)]
        errors = [f.slope_error if i == k else f.value_error for i, f in enumerate(found)]
        ntk += c.cross * math_product(factors)
        ntk_error += abs(c.cross) * sum_of_errors(factors, errors)
    return {"nngp": (value, error), "ntk": (ntk, ntk_error)}


def math_product(factors: list[np.ndarray]) -> float:
    return float(np.prod(factors, axis=0).sum())


def sum_of_errors(factors: list[np.ndarray], errors: list[np.ndarray]) -> float:
    return sum(math_product([e if i == k else np.abs(f) for i, f in enumerate(factors)]) for k, e in enumerate(errors))


def slopes_in_variance(case: Case, made: Made | None, x: np.ndarray, y: np.ndarray) -> Numbers:
    """By differences of truths at six variances, with errors, which are amplified a few hundredfold; as natural scales
    the kernels over the variance."""

    def at(factor: float) -> Numbers:
        changed = Case(**{**asdict(case), "variances": [case.variances[0] * factor, *case.variances[1:]]})
        return layers(changed, x, y, True) if made is None else products(changed, made, x, y)

    step = 0.006
    points = [at(1 + k * step) for k in (-3, -2, -1, 1, 2, 3)]
    table = np.array([[p["nngp"], p["ntk"]] for p in points])  # (points, kernels, 2)
    weights = np.array([[-1, 9, -45, 45, -9, 1], [0, 5, -40, 40, -5, 0]]) / (60 * step * case.variances[0])
    fine, coarse = weights @ table[..., 0]
    errors = np.abs(fine - coarse) / 10 + np.abs(weights[0]) @ (table[..., 1] + 1e-15 * np.abs(table[..., 0]))
    sizes = table[2, :, 0] / case.variances[0]
    return {kind: (float(fine[i]), float(errors[i]), float(sizes[i])) for i, kind in enumerate(("nngp", "ntk"))}
