"""The `muxserve` command: the one package above both shells."""
