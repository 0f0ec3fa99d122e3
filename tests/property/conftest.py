"""Properties have no limit of time: an example takes a hundred times as long on a busy machine."""

from hypothesis import settings

settings.register_profile("without deadline", deadline=None)
settings.load_profile("without deadline")
