"""The sparse products of a training step: one operation per file.

Each file holds `reference`, which is the operation in dense torch, and a fast version with the same
arguments and results. After the encoder's product only the active features matter, and the gradient
at an inactive one is exactly zero, so a step needs one dense product and a few sparse ones.
"""
