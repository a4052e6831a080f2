"""The embedded model: its checkpoint, and the scenes and questions that it is trained on."""
