"""A model reference -> something to talk to."""

Message = dict[str, str]
"""One turn of a conversation: its role and its content."""
