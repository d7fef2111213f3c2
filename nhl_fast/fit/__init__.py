"""Layers fitted to vectors that have no labels: random, PCA, ITQ, and learned from their own neighbours."""
