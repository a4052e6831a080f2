"""The embedded model: its checkpoint folder, and the scripts that made and measured it."""
