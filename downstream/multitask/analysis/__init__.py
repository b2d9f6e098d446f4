"""The analyses of the RCM paper: task gradients (figure 3), parameters per task (figure 4), features (figure 5)."""
