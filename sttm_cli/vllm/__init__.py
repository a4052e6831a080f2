"""STTM inside vLLM: a plugin, and `sttm serve --engine vllm`, which starts vLLM with it.

vLLM itself is imported only by `processors` and `models`, which vLLM imports, and by `plugin`
when vLLM calls it.
"""
