"""Kernels as Gram matrices of samples over a whole batch of inputs, for programs beyond exact expectations."""
