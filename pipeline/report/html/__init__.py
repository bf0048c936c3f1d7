"""`alignkd report --html`: one page with curves, figures, scores and settings that loads nothing from elsewhere."""
