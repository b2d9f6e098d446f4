"""Task balancing: weights of the tasks' losses, set anew at every step (thesis, section 3.2 and chapter 6)."""
