"""The wire, pure: headers, layouts, encoding and assembling. Patterns and modes hand in their kinds of messages."""
