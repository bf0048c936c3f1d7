"""The run configuration: its model, the messages for invalid values, and the recipes."""
