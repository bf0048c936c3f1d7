"""Weight files: reading, quantising, saving, the head alone, sizes."""
