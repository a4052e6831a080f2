"""The stages in order: the request, the loaded model, the kept KV, and the session."""
