"""Packed codes: packing, distances, search, ranking metrics, quality, advice."""
