# The server: NVIDIA's Triton under `triptych serve`, which checks the build, watches every process and drains at a stop.
#   docker build -f docker/server.Dockerfile -t triptych-server:0.1.0 .

# 26.07 is the oldest release with fixes for the vulnerabilities known in November 2026.
ARG TRITON_TAG=26.10-py3

FROM nvcr.io/nvidia/tritonserver:${TRITON_TAG} AS build
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# `cuda` in its place is for builds of `--target cuda`.
ARG SERVER_EXTRA=server
# TensorRT-RTX for RTX GPUs; empty makes an image for processors alone.
ARG GPU_EXTRA=tensorrt-rtx
# For data-centre GPUs: `tensorrt-cu13==…`, of the version that the base image says in TRT_VERSION.
ARG TENSORRT=
WORKDIR /src
# The image has pip, but not what `python3 -m venv` needs to bring its own. One environment builds, the other one serves.
RUN python3 -m venv --without-pip /opt/build && python3 -m venv --without-pip /opt/triptych
COPY pyproject.toml constraints.txt docker/requirements.py ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 requirements.py pyproject.toml "${SERVER_EXTRA}" ${GPU_EXTRA:+"$GPU_EXTRA"} --without nvidia-pytriton > requirements.txt \
    && echo "${TENSORRT}" >> requirements.txt \
    && python3 -m pip --python /opt/build/bin/python3 install -c constraints.txt hatchling \
    && python3 -m pip --python /opt/triptych/bin/python3 install -c constraints.txt -r requirements.txt
COPY README.md LICENSE NOTICE ./
COPY contract contract
COPY model_repository model_repository
COPY client client
COPY server server
COPY web web
COPY page page
COPY api api
COPY cluster cluster
COPY export export
COPY lab lab
COPY demo demo
RUN python3 -m pip --python /opt/build/bin/python3 wheel --no-cache-dir --no-deps --no-build-isolation -w /wheels . ./server ./demo \
    && python3 -m pip --python /opt/triptych/bin/python3 install --no-cache-dir --no-deps /wheels/*.whl

FROM nvcr.io/nvidia/tritonserver:${TRITON_TAG}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Triptych server" \
      org.opencontainers.image.description="Text-to-image serving on NVIDIA Triton: SDXL and Stable Cascade" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/triptych /opt/triptych
COPY --chmod=0555 docker/serve.sh docker/healthcheck.py /usr/local/lib/triptych/
# HOME is where libraries look for caches; the root file system may be read-only, and /tmp holds the run.
ENV PATH=/opt/triptych/bin:${PATH} \
    TRIPTYCH_TRITON_HOME=/opt/tritonserver \
    TRIPTYCH_BUILDS=/models \
    HOME=/tmp \
    ORT_DISABLE_TELEMETRY=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# Not the image's own `triton-server` (1000), to whom Triton's files belong.
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000 8001 8002
STOPSIGNAL SIGTERM
# The start period is as long as `triptych serve` lets a model load.
HEALTHCHECK --interval=15s --timeout=5s --start-period=600s --retries=3 \
    CMD ["/opt/triptych/bin/python3", "-IS", "/usr/local/lib/triptych/healthcheck.py"]
ENTRYPOINT ["/usr/local/lib/triptych/serve.sh"]
