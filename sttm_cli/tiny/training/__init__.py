"""The making of the embedded checkpoint; not part of an installed package."""
