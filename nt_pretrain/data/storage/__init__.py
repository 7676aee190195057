"""Where shards lie: folders, object stores, and the cache before those."""
