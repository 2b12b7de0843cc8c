"""Infinitely wide networks as scikit-learn estimators; needs the extra `sklearn`.

`NTKRegressor`, `NNGPRegressor`, `NTKClassifier` take a zoo name, a function or a program, and flat rows of data;
`kernel` is the same for `SVC` and `GaussianProcessRegressor`; `rank` says which architecture suits the data.
"""

try:
    import sklearn as _
except ImportError as error:
    raise ImportError("tensorprog.sklearn needs scikit-learn: pip install 'tensorprog[sklearn]'") from error

from tensorprog.sklearn.estimators import NNGPRegressor, NTKClassifier, NTKRegressor
from tensorprog.sklearn.gram import ProgramKernel, kernel
from tensorprog.sklearn.ranking import Candidate, Ranking, rank

__all__ = [
    "Candidate", "NNGPRegressor", "NTKClassifier", "NTKRegressor", "ProgramKernel", "Ranking", "kernel", "rank",
]  # fmt: skip
