"""Evaluation of a host's rules for a packet, without sending one: nftables, iptables-nft and legacy iptables.

How it works. Both languages become one form: chains of rules in the expressions of nft's JSON. ``reading.py`` reads a host,
``chains.py`` what nft prints of it, ``saved.py`` what iptables-save prints, ``xtables.py`` the extensions of iptables in nft's
text. ``expressions.py`` and ``statements.py`` make functions of a packet's facts from the rules, and ``ruleset.py`` passes a
packet through the chains. Two ask it: what becomes of a packet that is described (``described.py``), and ``cni-py walk``.

What is not understood is *in doubt*: a rule of that kind is passed over and remembered, with every end that the packet may have
instead.
"""
