"""The layout `webdataset`: a tar file of .npy members and an index file."""
