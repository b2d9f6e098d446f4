"""Models of several dense tasks: an encoder, shared or with parts for every task, and a head per task."""
