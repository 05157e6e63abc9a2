"""The wire: kinds of messages, headers, layouts, encoding and assembling; pure."""
