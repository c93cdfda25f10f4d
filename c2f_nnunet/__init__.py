"""Coarse-to-fine, self-configuring segmentation of organs at risk in head-and-neck CT."""

__version__ = "0.1.0"
