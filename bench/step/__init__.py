"""The training step of the head, beside the literal procedure and the reference."""
