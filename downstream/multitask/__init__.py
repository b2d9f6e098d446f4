"""Multi-task dense prediction."""
