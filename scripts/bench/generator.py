"""Rows about the generator."""

ROWS = []
