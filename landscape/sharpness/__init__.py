"""What the measures of sharpness share."""
