"""This process among its peers: groups, seeds, logs."""
