"""Runs on a cluster: the config of a cluster, submission, the job itself, and what it leaves to be read later."""
