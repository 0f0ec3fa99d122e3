"""What ``host-local`` stands on: ranges (pure arithmetic) and the store of reservations."""
