"""`alignkd data convert`: data sets of any format and dialect as one file of JSON lines."""
