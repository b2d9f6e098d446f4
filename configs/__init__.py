"""Recipes in YAML, shipped with the package."""
