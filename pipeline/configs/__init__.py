"""Ready recipes, as files: `alignkd configs` lists and copies them."""
