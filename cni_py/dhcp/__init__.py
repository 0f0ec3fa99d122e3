"""DHCP client for interfaces of pods, and the daemon that keeps their leases: ``dhcp daemon``."""
