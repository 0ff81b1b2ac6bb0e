"""What was found, for people: tables and Markdown."""
