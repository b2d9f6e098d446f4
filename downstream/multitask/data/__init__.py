"""Data sets for multi-task dense prediction, read as published, and their joint augmentation."""
