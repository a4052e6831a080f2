"""Measuring a budget: on published benchmarks through lmms-eval, and on questions of one's own."""
