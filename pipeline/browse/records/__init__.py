"""What the page of one record shows, as plain values and pictures."""
