"""The teacher's next-token distribution in the forms that a store keeps."""
