"""The order of the stages: a request, the model that is loaded, the KV that is kept, a session."""
