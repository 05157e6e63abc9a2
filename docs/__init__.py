"""The documentation: its pages, and the program that writes the page of settings."""
