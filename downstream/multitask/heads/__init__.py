"""Decoders from the feature maps of an encoder to the output of one task."""
