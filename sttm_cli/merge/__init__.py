"""The method: spatio-temporal merging of visual tokens. Torch only, no model in it."""

from sttm_cli.merge.merging import merge_tokens
from sttm_cli.merge.tokens import MergedTokens, Sources

__all__ = ["MergedTokens", "Sources", "merge_tokens"]
