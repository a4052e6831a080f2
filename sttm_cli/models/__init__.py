"""Video LLMs: checkpoints, and one file per model family behind the `VideoLLM` protocol."""
