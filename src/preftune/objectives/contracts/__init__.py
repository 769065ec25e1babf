"""What every objective must keep to: for the table in the tests, for a user's own class on the command line."""
