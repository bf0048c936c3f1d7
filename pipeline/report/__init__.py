"""`alignkd report`: the metrics of finished runs as a table and as a picture."""
