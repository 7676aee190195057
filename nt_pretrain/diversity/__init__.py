"""What differs inside the members of an ensemble: numbers, pictures and coloured text."""
