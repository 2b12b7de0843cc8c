"""Kernels of finite networks: the empirical NTK of any JAX function, and the NNGP kernel as an average over draws.

The limit kernels say what happens as the width goes to infinity; this module says what happens at the width you have.
It knows nothing of tensor programs except in one file (`programs`), so it serves a Flax or Equinox network too.

Three ways to one kernel Θ[i,j] = Σ_p lr_p ∂f(x_i)/∂θ_p ∂f(x̄_j)/∂θ_p (Novak, Sohl-Dickstein, Schoenholz 2022, §3):

- *structured derivatives*: backpropagation cut at each weight's pre-activation, Gram matrices of what is found there;
- *Jacobian contraction*: all derivatives of a block of examples by `jax.vjp`, then one matrix product a parameter;
- *NTK-vector products*: for each basis vector e of the outputs, θ-direction Jᵀe by `jax.vjp`, then J(Jᵀe) by `jax.jvp`.

All run over blocks of examples of one fixed size inside one compiled function, and only over the upper triangle of
blocks when there is no second batch. `ntk(..., explain=True)` says which is taken, and what it needs.
"""

from tensorprog.empirical.averages import nngp as nngp
from tensorprog.empirical.kernels import ntk as ntk
from tensorprog.empirical.kernels import ntk_by_parameter as ntk_by_parameter
from tensorprog.empirical.plan import Plan as Plan
from tensorprog.empirical.vector_products import ntk_vector_product as ntk_vector_product

__all__ = ["Plan", "nngp", "ntk", "ntk_by_parameter", "ntk_vector_product"]
