"""Interpreters: one program, several answers."""
