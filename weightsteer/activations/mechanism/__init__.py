"""What steering does inside a model: parts frozen, values read as tokens, circuits, the dimensions that matter."""
