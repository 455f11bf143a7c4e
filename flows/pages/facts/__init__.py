"""What each page shows: a function from a site and an address to plain values."""
