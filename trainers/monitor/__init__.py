"""The loss landscape of a network while it is trained."""
