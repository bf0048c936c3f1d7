"""From a teacher's forward pass to the record of one sample."""
