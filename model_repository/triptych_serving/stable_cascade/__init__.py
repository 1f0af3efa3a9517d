"""What Stable Cascade's requests ask for: settings, and Stage C's hand-over to Stage B."""
