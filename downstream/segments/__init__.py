"""Segment retrieval."""
