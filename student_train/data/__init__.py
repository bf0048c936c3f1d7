"""From a store and the data to batches on the device."""
