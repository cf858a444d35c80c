"""The wing that runs where the cores are: a supervisor and its worker processes. Knows stream and codec."""
