"""What a user can set: one table of fields, its parsing, and the config file."""
