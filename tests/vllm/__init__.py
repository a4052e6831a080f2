"""Tests of the plugin for vLLM; those with vLLM need an environment of its own (environment.py)."""
