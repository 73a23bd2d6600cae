"""One process that serves one named worker: from the claim of a task to its stored result."""
