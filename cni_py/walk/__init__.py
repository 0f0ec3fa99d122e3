"""The path of a packet between two places: predicted from the kernel's tables, then verified by a real packet.

``place.py`` reads the tables of one network namespace, ``hooks.py`` passes its packet filter, ``predict.py`` follows a
packet from namespace to namespace and returns hops, ``probe.py`` sends a packet and watches it, ``compare.py`` compares the
two, ``text.py`` and ``svg.py`` draw. Nothing is changed but one table of nftables per namespace, which belongs to our socket
and disappears with it. Reference: docs/walk.md.
"""
