"""What a data set contains: its samples judged one by one, and the figures of `alignkd data stats`."""
