"""Streaming metrics of dense prediction tasks, and Delta_MTL."""
