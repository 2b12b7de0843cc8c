"""Finite against infinite: kernels over widths and seeds, of the program's networks or your own; training runs."""

from tensorprog.comparison.kernels import Comparison as Comparison
from tensorprog.comparison.kernels import compare as compare
from tensorprog.comparison.rates import fitted_rate as fitted_rate
from tensorprog.comparison.training import TrainingComparison as TrainingComparison
from tensorprog.comparison.training import compare_training as compare_training

__all__ = ["Comparison", "TrainingComparison", "compare", "compare_training", "fitted_rate"]
