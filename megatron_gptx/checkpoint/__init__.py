"""Files to layers and back."""
