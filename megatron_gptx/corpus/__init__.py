"""Raw text to token files. No rank of a run imports it."""
