"""The embedded model: its checkpoint folder, and the scenes and questions that it knows."""
