"""Errors of every datastore: etcd, the Kubernetes API, a file."""


class StoreError(Exception):
    """A failure of a datastore; ``hint`` is what a person does next."""

    def __init__(self, msg: str, hint: str = "") -> None:
        super().__init__(f"{msg}; {hint}" if hint else msg)
        self.msg, self.hint = msg, hint


class Unavailable(StoreError):
    """The datastore does not respond: try again."""


class Refused(StoreError):
    """A refusal that lasts until a person has acted."""
