"""The compiled training steps."""
