"""Pictures for papers."""
