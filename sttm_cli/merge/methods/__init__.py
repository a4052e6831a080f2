"""The merging methods, one a file, found by the file's name; each exports `METHOD`."""
