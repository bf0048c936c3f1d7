"""DeepSpeed's ZeRO-2: state divided among devices, or on the host; `engine.py` alone imports deepspeed."""
