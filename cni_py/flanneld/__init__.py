"""flanneld: leases the node's subnet, writes subnet.env, maintains the routes to the other nodes. Start at ``daemon.py``."""
