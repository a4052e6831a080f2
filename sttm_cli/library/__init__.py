"""Prepare many videos: find them, estimate their size, and compute and store their KVs."""
