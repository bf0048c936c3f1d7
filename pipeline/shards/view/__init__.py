"""One record of a store for people: its parts, as a page of text and as a picture."""
