"""What holds for every suite: properties are checked without a clock, machines are shared."""

from hypothesis import settings

settings.register_profile("muxserve", deadline=None)
settings.load_profile("muxserve")
