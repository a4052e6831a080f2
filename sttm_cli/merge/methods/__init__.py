"""The merging methods, one file each, looked up by file name; each file exports `METHOD`."""
