"""What has become of a batch, item by item and worker by worker, to be counted and drawn."""
