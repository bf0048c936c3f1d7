"""AdamW with moments in float32 or in 8 bits, as optimisers of torch that both engines use."""
