# One image for operator, gateway and units; what runs is the argument: -m mux_operator,
# -m mux_runtime gateway, -m mux_runtime unit.
FROM python:3.11-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ cmake ninja-build \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml constraints.txt README.md ./
COPY core core
COPY operator operator
COPY runtime runtime
COPY cli cli
COPY csrc csrc
RUN python -m venv /opt/muxserve \
    && /opt/muxserve/bin/pip install --no-cache-dir -c constraints.txt '.[operator,runtime]' ./csrc

FROM python:3.11-slim
COPY --from=build /opt/muxserve /opt/muxserve
ENV PATH=/opt/muxserve/bin:$PATH PYTHONUNBUFFERED=1
USER 65532:65532
ENTRYPOINT ["/opt/muxserve/bin/python"]
CMD ["-m", "mux_operator", "--help"]
