"""The command line: `tensorprog show|check|recursion|kernel|compare|predict`."""

from tensorprog.cli.main import main

__all__ = ["main"]
