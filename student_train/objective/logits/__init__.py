"""Terms on the student's logits."""
