"""How the layers of a decoder are computed: by torch's kernels, by those of a library, compiled, computed again."""
