"""Doors to the ecosystem: what other tools already speak, with nbqueue behind it. One file each."""
