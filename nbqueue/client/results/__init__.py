"""What a call or a map returns at once, and the ways to wait for it, to see how it failed, to run it again."""
