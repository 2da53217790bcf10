"""Mathematical operations that have, or will have, more than one backend."""
