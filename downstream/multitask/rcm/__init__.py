"""Reparameterized convolutions for multi-task learning (RCM), and the adapters it is compared with."""
