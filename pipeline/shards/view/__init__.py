"""One record of a store for human readers: its parts, a page of text, a picture."""
