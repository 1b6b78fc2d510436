# A client's two containers: the SuperNode, which talks to the server, and the worker, which holds data and memory.
#     docker build -f docker/client.Dockerfile -t fedsim-client .
#     ... --build-arg ACCELERATOR=cu130 for torch with CUDA
# The first two stages are those of server.Dockerfile, line by line, so that both images share its layers.
FROM python:3.11-slim AS packages
ARG TORCH=2.13.0
ARG ACCELERATOR=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin
RUN python -m venv /opt/venv \
    && pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX/$ACCELERATOR"} "torch==$TORCH+$ACCELERATOR" \
    && rm -r /opt/venv/lib/python3.11/site-packages/torch/include /opt/venv/lib/python3.11/site-packages/torch/test
COPY docker/requirements.txt /build/docker/
RUN pip install --no-cache-dir -r /build/docker/requirements.txt

FROM packages AS build
COPY . /build
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /build

FROM python:3.11-slim
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp FLWR_HOME=/tmp/flwr NUMBA_CACHE_DIR=/tmp/numba \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1
COPY --from=packages /opt/venv /opt/venv
COPY --from=build /wheels /wheels
# Kernels are compiled here for this machine's processor; another one compiles them again, once a container.
RUN pip install --no-cache-dir --no-deps --no-index /wheels/*.whl && pip check \
    && NUMBA_CACHE_DIR=/opt/compiled fedsim run --set rounds=2 --folder /tmp/try --engine flower-in-process \
    && rm -r /tmp/* && chmod -R a+rX /opt/compiled
COPY docker/container.sh /opt/container.sh
RUN install -d -m 0755 /data /identity \
    && install -d -m 0700 -o 10001 -g 10001 /rows /run/fedsim /identity/node /identity/public
USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["sh", "/opt/container.sh"]
CMD ["supernode"]
