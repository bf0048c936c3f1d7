"""The tables of docs/objectives.md, made from the code."""
