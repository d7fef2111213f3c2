"""Searches of an index in stages."""
