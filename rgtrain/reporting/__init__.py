"""What a person reads of finished runs."""
