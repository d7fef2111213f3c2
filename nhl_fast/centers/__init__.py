"""Hash centres: one +-1 code a class and length."""
