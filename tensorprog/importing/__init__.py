"""Import: from a plain JAX function, or a model of Flax or Equinox, to a program."""
