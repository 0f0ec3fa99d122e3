"""The only modules that change the kernel: rtnetlink, nftables, sysctl; and the journal of what they did.

They take plain values and know nothing of plugins or configurations.
"""
