"""Ranges (pure arithmetic) and the store of reservations, used by ``host-local``."""
