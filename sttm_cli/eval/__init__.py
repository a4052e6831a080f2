"""Measure budgets: on published benchmarks through lmms-eval, and on the user's own questions."""
