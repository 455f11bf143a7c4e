"""What commands show, as tables and sentences."""
