"""Hamming search, evaluation and the index, beside what others offer."""
