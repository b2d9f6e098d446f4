"""Networks whose decoders let tasks use each other's features: MTI-Net, PAD-Net and the baselines they are compared to.

Vandenhende, Georgoulis, Van Gool, "MTI-Net: Multi-Scale Task Interaction Networks for Multi-Task Learning", ECCV 2020
(chapter 5 of the thesis "Multi-Task Learning for Visual Scene Understanding").
"""
