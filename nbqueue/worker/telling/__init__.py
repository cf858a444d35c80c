"""What a task prints, shows and says of its progress, on its way to the notebook."""
