"""From what people have to shards."""
