"""What a run trains: the choice, its parameters, LoRA, and the checks that every loss reaches something trained."""
