"""What every benchmark shares: timing, the machine, random data, and what others offer."""
