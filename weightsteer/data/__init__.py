"""Texts: contrast pairs, read, elicited or generated."""
