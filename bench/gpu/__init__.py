"""What only a card can say, in minutes: tests, times and profiles, resumed where they stopped."""
