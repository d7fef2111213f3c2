"""Results as text: plain tables, escaped HTML."""
