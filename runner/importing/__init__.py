"""Tasks of an older orchestrator, from its SQLite file into the yard: read, understand, carry over, insert."""
