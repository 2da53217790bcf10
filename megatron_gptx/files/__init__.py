"""Files: written aside, synced, renamed, and fingerprinted."""
