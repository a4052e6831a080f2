"""Attacks on the whole program, by group: `python -m tests.attack --help`."""
