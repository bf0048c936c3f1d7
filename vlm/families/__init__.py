"""Families of models behind one interface, `family.py`; `open.py` chooses the family of a checkpoint."""
