"""What tests share: a host of its own for each, nodes with a flanneld, runtimes, and what kills and breaks them."""
