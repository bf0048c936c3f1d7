"""Values with a meaning of their own in `input_ids` and `labels`."""

# a position that is not supervised
IGNORE_LABEL = -100
# in ids before vision tokens are inserted: an image is here; models of transformers never see it
IMAGE_TOKEN_ID = -200
