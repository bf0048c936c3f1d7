"""The command that brings other tools' targets into a store; apart from `shards`, because it imports torch."""
