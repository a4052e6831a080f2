"""One-off measurements behind figures in the documents; not part of an installed package."""
