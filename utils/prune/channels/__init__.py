"""Slicing: which channels can be cut out together, what they are worth, and cutting them out."""
