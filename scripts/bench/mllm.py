"""Rows about the multimodal LLM."""

ROWS = []
