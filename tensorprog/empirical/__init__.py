"""Kernels of finite networks: the empirical NTK of any JAX function, and the NNGP kernel as an average over draws.

The limit kernels say what happens as the width goes to infinity; this module says what happens at the width you have.
It knows nothing of tensor programs except in one file (`programs`), so it serves a Flax or Equinox network too.

Two ways to one kernel Θ[i,j] = Σ_p lr_p ∂f(x_i)/∂θ_p ∂f(x̄_j)/∂θ_p (Novak, Sohl-Dickstein, Schoenholz 2022, §3):

- *Jacobian contraction*: all derivatives of a block of examples by `jax.vjp`, then one matrix product a parameter;
- *NTK-vector products*: for each basis vector e of the outputs, θ-direction Jᵀe by `jax.vjp`, then J(Jᵀe) by `jax.jvp`.

Both run over blocks of examples of one fixed size inside one compiled function, and only over the upper triangle of
blocks when there is no second batch.
"""

from tensorprog.empirical.kernels import nngp as nngp
from tensorprog.empirical.kernels import ntk as ntk

__all__ = ["nngp", "ntk"]
