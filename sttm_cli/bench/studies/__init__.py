"""One-off measurements for figures in the documents; not part of the installed package."""
