"""Program → Program: a program run again on traced values, its backward pass, its training."""
