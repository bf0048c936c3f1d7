"""The named targets of a store: their names, rows and forms."""
