"""Benchmarks of speed and accuracy; not imported by other folders except `cli/`."""
