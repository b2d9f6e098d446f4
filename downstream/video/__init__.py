"""Label propagation through videos."""
