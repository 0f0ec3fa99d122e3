"""flanneld: leases the node's subnet, writes subnet.env, builds the way to the other nodes. Start at ``daemon.py``."""
