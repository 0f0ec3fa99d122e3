"""cni-py: the flannel CNI suite in Python. Start reading at ``client.py``, or at docs/add-walkthrough.md."""

__version__ = "0.1.0"
