"""Ratios against what a user would use instead: python -m scripts.bench"""
