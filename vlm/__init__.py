"""What both phases must agree on: model family, prompt templates, tokenisation, image pre-processing, position map."""
