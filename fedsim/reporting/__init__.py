"""What runs have come to: read back, put side by side over seeds, shown."""
