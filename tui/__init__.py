"""The terminal application: windows on the yard. It decides nothing; see sql/ for what does."""
