"""Video LLMs: checkpoints by name, and one file per model family behind the `VideoLLM` protocol."""
