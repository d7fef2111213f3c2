"""What all others stand on; knows no loss, no kernel and no run."""
