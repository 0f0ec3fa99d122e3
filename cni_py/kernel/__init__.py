"""The kernel's objects, a module each: links, addresses, routes, neighbours, sysctls, namespaces, connections.

They take plain values and know nothing of plugins or configurations.
"""
