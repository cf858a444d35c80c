"""What goes to the server, and the one thread that sends it and reads what comes back."""
