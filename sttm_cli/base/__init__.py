"""Shared by all layers: errors, types, results, clock, device. Imports no other folder."""
